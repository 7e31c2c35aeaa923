"""The part of docs/results.md on all tasks of bAbI in one model (benchmarks/babi_all.py)."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from benchmarks.pages.text import Results, interval, origin, prose, runs_of, share, table

PREFIX = "babi_all-"
PUBLISHED = """Mean errors that were published for one model of all twenty tasks: EntNet 9.7 %
    (Henaff et al. 2017, as Le et al. 2020 give it), STM 0.39 % (Le et al. 2020)."""
SOLVED = 0.05
"""Largest error of a task that counts as solved (Weston et al. 2015)."""
COLUMNS = 2
"""Tasks side by side."""


def section(results: Results) -> list[str]:
    """Nothing where no seed was measured."""
    return [part for run in runs_of(results, PREFIX) for part in _of(run)]


def _of(run: Mapping[str, Any]) -> list[str]:
    tasks = run["tasks"]
    exact = [task["exact"] for task in tasks.values()]
    solved = sum(each >= 1 - SOLVED for each in exact)
    cells = [_cells(number, task) for number, task in tasks.items()]
    rows = -(-len(cells) // COLUMNS)
    cells += [("",) * len(cells[0])] * (rows * COLUMNS - len(cells))
    header = ("task", "error", "erased", "most frequent")
    return [
        prose(f"""{origin(run)} {len(tasks)} tasks in one model, a turn for each statement,
            {run["wall_seconds"] / 60:.0f} minutes. Share of wrong answers to the questions of each
            test file, with its 95 % interval, and with erased memory. Mean
            {share(1 - fmean(exact))}; at most {SOLVED:.0%} in {solved} tasks. {PUBLISHED}"""),
        table(
            header * COLUMNS,
            [sum((cells[row + rows * i] for i in range(COLUMNS)), ()) for row in range(rows)],
        ),
        prose(f"""Tokens of answers that were most probable in training, by minutes of its last
            stage: {_curve(run)}."""),
    ]


def _cells(number: str, task: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = task["interval"]
    wrong = [share(1 - task[name]) for name in ("exact", "erased", "most_frequent")]
    return (number, f"{wrong[0]} ({interval(1 - high, 1 - low)})", *wrong[1:])


def _curve(run: Mapping[str, Any]) -> str:
    return ", ".join(f"{point['accuracy']:.2f} ({point['minutes']:.0f})" for point in run["curve"])
