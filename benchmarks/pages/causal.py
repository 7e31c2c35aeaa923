"""docs/causal_results.md: what reinforcement learning of a small causal language model gains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.pages import text_games, text_memory
from benchmarks.pages.text import Results, document, origin, points, prose, share, table

PREFIX = "sentiment_"
SHOWN = 3
"""Answers that are shown side by side."""


def page(results: Results) -> str:
    runs = [result for name, result in sorted(results.items()) if name.startswith(PREFIX)]
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
        prose("""*Score* is the mean over answers to held-out prompts, sampled with the same random
            numbers before and after, with its standard error. *KL* is to the model at the start,
            in nats an answer. *Distinct* is the share of different pairs of tokens. *Wins* is the
            share of prompts whose answer is better after training than before, half of one where
            both are alike: by the score, and by the *words* of `configs/praise.py`, which training
            never used. Machine: 2 CPU cores, no GPU, beside other work, so seconds say little."""),
        table(
            (
                "algorithm",
                "seed",
                "episodes",
                "before",
                "after",
                "KL",
                "distinct",
                "length",
                "wins",
                "words",
                "seconds",
            ),
            [_row(run) for run in runs],
        ),
        prose(_before(runs)),
        *_answers(runs),
        "## Sources",
        points(*map(origin, runs)),
        *text_games.section(results),
        *text_memory.section(results),
    )


def _row(run: Mapping[str, Any]) -> tuple[str, ...]:
    before, after = run["before"], run["after"]
    return (
        f"`{run['algorithm']}`",
        str(run["seed"]),
        f"{run['episodes']:,}",
        _mean(before["score"]),
        _mean(after["score"]),
        f"{after['kl']:.2f}",
        share(after["distinct"]["2"]),
        f"{after['length']:.1f}",
        share(run["wins"]["score"]),
        share(run["wins"]["praise"]),
        f"{run['seconds']:.0f}",
    )


def _mean(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.3f} ± {figure['error']:.3f}"


def _before(runs: list[Mapping[str, Any]]) -> str:
    first = runs[0]["before"]
    return f"""Before training, {share(first["distinct"]["2"])} of pairs are different, and an
        answer has {first["length"]:.1f} tokens."""


def _answers(runs: list[Mapping[str, Any]]) -> list[str]:
    """Answers of each run to the same prompts, side by side with those before it."""
    rows = []
    for place in range(SHOWN):
        prompt = runs[0]["before"]["samples"][place]["prompt"]
        rows.append((_cell(prompt), "before", _cell(runs[0]["before"]["samples"][place]["answer"])))
        for run in runs:
            answer = run["after"]["samples"][place]["answer"]
            rows.append(("", f"`{run['algorithm']}`", _cell(answer)))
    return ["## Answers to the same prompts", table(("prompt", "", "answer"), rows)]


def _cell(text: str) -> str:
    """Text of a cell, at most 60 characters of it."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= 60 else line[:59] + "…"
