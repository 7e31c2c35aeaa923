"""The figures on docs/feedback.md, between two marks: rounds with a scripted person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.pages.text import Results, origin, points, prose, runs_of, table

PREFIX = "feedback-"
BEGIN, END = "<!-- measured -->\n", "<!-- end of measured -->\n"


def with_figures(page: str, results: Results) -> str:
    """The page with what was measured. ValueError where its marks are not there."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN.strip()} … {END.strip()}")
    runs = runs_of(results, PREFIX)
    text = "\n\n".join(_of(run) for run in runs) if runs else "Not measured."
    return f"{head}{BEGIN}{text}\n{END}{tail}"


def _of(run: Mapping[str, Any]) -> str:
    told = {key: sum(each[key] for each in run["labels"]) for key in run["labels"][0]}
    last = len(run["scores"]) - 1
    gain, whole, wins = run["first_to_last"], run["start_to_last"], run["wins_start"]
    rises = gain["mean"] > 1.96 * gain["error"]
    return "\n\n".join(
        (
            prose(f"""In place of people, a lexicon that nobody trained for it (VADER) ranks by the
                mood of prompt and continuation, through the page's API, and is turned round in
                {run["noise"]:.0%} of the questions: {told["ranked"]} rankings,
                {told["turned"]} of all turned round, {told["alike"]} of answers that are all
                alike. Before the first round it gives {told["demonstrated"]} demonstrations, what
                reviewers wrote in a good mood, and skips {told["skipped"]} prompts. *Score* is the
                mean mood of answers to {run["held_out"]:,} held-out prompts, sampled with the same
                random numbers after each round, with its standard error; 0 is the policy before
                the first round."""),
            table(
                ("round", "score", "reward model right", "wins by it", "wins by the ranker"),
                [_row(run, number) for number in range(len(run["scores"]))],
            ),
            prose(f"""From round 1 to round {last} the score changes by {_mean(gain)} over the same
                prompts: {"beyond" if rises else "not beyond"} what its spread would give (1.96
                standard errors). From round 0 to round {last} it changes by {_mean(whole)}, and
                {wins["share"]:.0%} ({wins["low"]:.0%} to {wins["high"]:.0%}) of the answers have a
                better mood than those of round 0, half of each tie. One seed;
                {run["seconds"] / 60:.0f} minutes beside other work. A lexicon pays single words, so
                the last answers are rows of praise: the loop teaches what its rankers pay, and only
                `kl` holds it back."""),
            points(origin(run)),
        )
    )


def _row(run: Mapping[str, Any], number: int) -> tuple[str, ...]:
    score = _mean(run["scores"][number])
    if number == 0:
        return "0", score, "–", "–", "–"
    held = run["rounds"][number - 1]
    return (
        str(number),
        score,
        _share(held["reward_model"], "accuracy", "accuracy_low", "accuracy_high"),
        _share(held["win_rate"], "share", "low", "high"),
        _share(held["people"], "share", "low", "high"),
    )


def _mean(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.3f} ± {figure['error']:.3f}"


def _share(held: Mapping[str, float] | None, *keys: str) -> str:
    if not held:
        return "–"
    share, low, high = (held[key] for key in keys)
    return f"{share:.2f} ({low:.2f}–{high:.2f})"
