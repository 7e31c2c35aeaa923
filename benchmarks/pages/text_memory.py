"""The part of docs/memory_results.md on a text memory beside the last interactions
(benchmarks/text_memory.py)."""

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

PREFIX = "text_memory-"


def section(results: Results) -> list[str]:
    """Nothing where no seed was measured."""
    runs = runs_of(results, PREFIX)
    if not runs:
        return []
    return [
        "## Text memory against the last interactions",
        prose("""`python -m benchmarks.text_memory SEED FOLDER` trains a small Llama-shaped model
            from scratch by the supervised stage of `configs/text_memory.yaml`, and from there
            twice: with a memory that it writes itself ([text_memory.md](text_memory.md)), and with
            the last interactions within as many tokens, by `lm_sft` and `lm_rl` for as long, as a
            short run foretells it.
            Recall on held-out conversations by distance in turns, with its 95 % interval; *erased*
            is the same without memory."""),
        *(part for run in runs for part in _of(run)),
        points(*map(origin, runs)),
    ]


def _of(run: Mapping[str, Any]) -> list[str]:
    text, window = run["text"], run["window"]
    kinds = (text["retention"], window["retention"])
    common = [each for each in distances_of(kinds[0]) if each in kinds[1]["memory"]]
    rows = [
        (each, *(cell for kind in kinds for cell in recall_at(kind, each)))
        for each in (*common, "all")
    ]
    read, other = text["tokens_per_answer"], window["tokens_per_answer"]
    return [
        table((f"distance, seed {run['seed']}", "text", "erased", "window", "erased"), rows),
        prose(f"""An answer reads {read["before_answer"]:.0f} tokens with the text memory, and
            {read["before_memory"]:.0f} more are read and {read["of_memory"]:.0f} generated to write
            it; with the last interactions it reads {other["before_answer"]:.0f}. The budget cut
            {text["cut"]:.1%} of the memories. Training took
            {_minutes(run["start"])} minutes in common, then {_minutes(text)} and
            {_minutes(window)}."""),
    ]


def _minutes(part: Mapping[str, Any]) -> str:
    return f"{sum(part['seconds'].values()) / 60:.0f}"
