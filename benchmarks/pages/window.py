"""The part of docs/memory_results.md on the last interactions (benchmarks/window.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.pages.text import (
    Results,
    distances_of,
    origin,
    points,
    prose,
    recall_at,
    runs_of,
    table,
)

PREFIX = "window-"


def section(results: Results) -> list[str]:
    """Nothing where no seed was measured."""
    runs = runs_of(results, PREFIX)
    if not runs:
        return []
    return [
        "## The last interactions as memory",
        prose(f"""A Llama-shaped model from scratch learns to copy with a text memory, and then the
            demo's conversations, by `lm_sft` and `lm_rl`, with its last
            {runs[0]["interactions"]} interactions as memory. Recall on
            held-out conversations by distance in turns, with its 95 % interval; *erased* is
            without memory. What was said further back than the window is not in its context."""),
        *(table((f"distance, seed {run['seed']}", "recall", "erased"), _rows(run)) for run in runs),
        points(*map(origin, runs)),
    ]


def _rows(run: Mapping[str, Any]) -> list[tuple[str, ...]]:
    retention = run["retention"]
    return [(each, *recall_at(retention, each)) for each in distances_of(retention)]
