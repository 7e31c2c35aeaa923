"""docs/causal_results.md: what reinforcement learning of a small causal language model gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.pages import beside_trl, letters
from benchmarks.pages.text import Results, commit, document, points, prose, share, spread, table

PREFIX = "sentiment_"
SHOWN = 2
"""Answers that are shown side by side."""


def page(results: Results) -> str:
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for name, result in sorted(results.items()):
        if name.startswith(PREFIX):
            runs.setdefault(result["algorithm"], []).append(result)
    return document(
        "# Causal language models: results",
        prose("""What reinforcement learning of a small GPT-2 gains ([causal.md](causal.md)). This
            page is made from `benchmarks/results/` by `python -m benchmarks.pages`.
            `python -m benchmarks.tiny_gpt2 FOLDER FILE.txt … --steps 400 --width 96 --vocabulary
            2048` trains the model on nine tenths of 10,662 sentences of film reviews (Pang and Lee
            2005), and
            `python -m benchmarks.sentiment ALGORITHM SEED` trains it on with
            `configs/sentiment_small.yaml`: it goes on with the first eight tokens of a review, and
            a lexicon that nobody trained for it (VADER) pays for the mood of the whole, from -1
            to 1."""),
        prose(f"""*Score* is the mean over answers to held-out prompts, sampled with the same random
            numbers before and after {_episodes(runs):,} episodes. Figures are means over seeds,
            three of them with the lowest and the highest; the standard error of one score is about
            {_error(runs):.2f}. *KL* is to the model at the start, in nats an answer. *Distinct* is
            the share of different pairs of tokens. *Wins* is the share of prompts whose answer is
            better after training than before, half of one where both are alike: by the score, and
            by the *words* of `configs/praise.py`, which training never used. Machine: 2 CPU cores,
            no GPU."""),
        table(
            (
                "algorithm",
                "seeds",
                "score",
                "KL",
                "distinct",
                "length",
                "wins",
                "words",
            ),
            [_row(name, each) for name, each in runs.items()],
        ),
        prose(_before(runs)),
        *_answers({name: each[0] for name, each in runs.items()}),
        points(*map(_origin, runs.values())),
        *beside_trl.section(results),
        *letters.section(results),
    )


def _row(name: str, runs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    def over(value: Callable[[Mapping[str, Any]], float], digits: int = 3) -> str:
        return spread([value(run) for run in runs], digits)

    return (
        f"`{name}`",
        str(len(runs)),
        over(lambda run: run["after"]["score"]["mean"]),
        over(lambda run: run["after"]["kl"], 1),
        f"{fmean(run['after']['distinct']['2'] for run in runs):.2f}",
        f"{fmean(run['after']['length'] for run in runs):.1f}",
        over(lambda run: run["wins"]["score"], 2),
        f"{fmean(run['wins']['praise'] for run in runs):.2f}",
    )


def _error(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> float:
    return max(run["after"]["score"]["error"] for each in runs.values() for run in each)


def _episodes(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> int:
    return max(int(run["episodes"]) for each in runs.values() for run in each)


def _before(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    first = next(iter(runs.values()))[0]["before"]
    return f"""Before training, the score is {share(first["score"]["mean"])},
        {share(first["distinct"]["2"])} of pairs are different, and an answer has
        {first["length"]:.1f} tokens."""


def _origin(runs: Sequence[Mapping[str, Any]]) -> str:
    seeds = ", ".join(str(run["seed"]) for run in runs)
    commits = ", ".join(dict.fromkeys(map(commit, runs)))
    return (
        f"`python -m benchmarks.sentiment {runs[0]['algorithm']} SEED FOLDER`, seeds {seeds}, "
        + (f"commit {commits}.")
    )


def _answers(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Answers of one run of each algorithm to the same prompts, side by side with those before."""
    first, rows = next(iter(runs.values()))["before"]["samples"], []
    for place in range(SHOWN):
        rows.append((_cell(first[place]["prompt"]), "before", _cell(first[place]["answer"])))
        for name, run in runs.items():
            rows.append(("", f"`{name}`", _cell(run["after"]["samples"][place]["answer"])))
    return ["## Answers to the same prompts", table(("prompt", "", "answer"), rows)]


def _cell(text: str) -> str:
    """Text of a cell, at most 60 characters of it."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= 60 else line[:59] + "…"
