"""The part of docs/reward_models.md on preferences and recall in one run (benchmarks/rlhf.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.pages.text import Results, origin, points, prose, runs_of, share, table

PREFIX = "rlhf-"
NAMES = {
    "before": "nothing (before)",
    "both": "quality and recall together",
    "quality": "quality alone",
    "in_turn": "recall, then quality",
    "recall": "recall alone",
}


def section(results: Results) -> list[str]:
    """Nothing where no seed was measured."""
    runs = runs_of(results, PREFIX)
    if not runs:
        return []
    return [
        "## Preferences and recall in one run",
        prose(f"""`python -m benchmarks.rlhf SEED` teaches a model with memory two tones, trains a
            reward model of memory that prefers one of them, and goes on from the same weights for
            {runs[0]["episodes"]:,} episodes each (`configs/rlhf.yaml`). *Tone* is the share of
            sampled answers in the preferred one; recall is of greedy ones. Held-out conversations;
            means over {len(runs)} seeds, with the lowest and the highest."""),
        table(
            ("paid by", "tone", "recall", "exact answers", "seconds"),
            [_row(runs, name) for name in NAMES if name in runs[0]["policies"]],
        ),
        prose(f"""Recall lies below its 95 % interval before training in {_fallen(runs, "both")} of
            {len(runs)} seeds where both are paid, and in {_fallen(runs, "quality")} where quality
            is paid alone."""),
        points(*map(origin, runs)),
    ]


def _row(runs: Sequence[Mapping[str, Any]], name: str) -> tuple[str, ...]:
    found = [run["policies"][name] for run in runs]
    seconds = [each["seconds"] for each in found if each.get("seconds")]
    return (
        NAMES[name],
        _spread([each["addressed"] for each in found]),
        _spread([each["recall"]["all"] for each in found]),
        _spread([each["exact"]["all"] for each in found]),
        f"{fmean(seconds):.0f}" if seconds else "–",
    )


def _spread(values: Sequence[float]) -> str:
    return f"{share(fmean(values))} ({min(values):.2f}–{max(values):.2f})"


def _fallen(runs: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(
        run["policies"][name]["recall"]["all"]
        < run["policies"]["before"]["intervals"]["recall"]["all"][0]
        for run in runs
    )
