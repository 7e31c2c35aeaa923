"""All bAbI tasks that have a training file, in one model, evaluated once on each test file.

    python -m benchmarks.babi_all SEED FOLDER [OUT]

trains `configs/babi_all.yaml` on FOLDER (en-10k) in OUT (default: `runs`), one statement a turn,
and answers the questions of each task's test file in one pass over its story. Writes
benchmarks/results/babi_all-SEED.json: exact answers by task, and how they were learnt. Started
again, it goes on from where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import record
from benchmarks.training import CONFIGS, train
from common.config.data import BabiData
from common.config.loader import load_run
from common.data.conversations import save_rows
from common.data.datasets.table import load_corpus
from learner.evaluation.evaluate import evaluate_checkpoint

FILES = (CONFIGS / "babi.yaml", CONFIGS / "babi_all.yaml")
POINTS = 12
"""Of the curve."""


def words_of(seed: int, folder: str, out: Path, tasks: Sequence[int] | None = None) -> list[str]:
    """What is laid over the configuration; with the tasks of a test file."""
    words = [f"seed={seed}", f"name=babi_all-{seed}", f"runs={out}", f"data.folder={folder}"]
    return words if tasks is None else [*words, f"data.tasks={list(tasks)}"]


def curve(rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Steps and minutes of memory-aware training with the share of answers' tokens that were most
    probable."""
    told = [row for row in rows if "train/accuracy_lm" in row]
    chosen = told[:: max(1, len(told) // POINTS)]
    return [
        {
            "step": row["step"] - told[0]["step"],
            "minutes": (row["time"] - told[0]["time"]) / 60,
            "accuracy": row["train/accuracy_lm"],
        }
        for row in chosen
    ]


def task_report(number: int, seed: int, folder: str, out: Path, where: Path) -> dict[str, Any]:
    """Exact answers to the questions of a task's test file, with interval and controls."""
    settings = load_run(FILES, words_of(seed, folder, out, [number]))
    questions = where / f"test-{number}.jsonl"
    save_rows(load_corpus(settings.data, settings.seed).test, questions)
    found = evaluate_checkpoint(str(where), str(questions))
    retention = found["retention"]
    return {
        "questions": found["counts"]["all"],
        "exact": retention["exact"]["all"],
        "interval": retention["intervals"]["exact"]["all"],
        "erased": retention["erased"]["all"],
        "most_frequent": retention["most_frequent"]["all"],
    }


def run(seed: int, folder: str, out: Path) -> dict[str, Any]:
    words = words_of(seed, folder, out)
    done, settings = train(FILES, words), load_run(FILES, words)
    assert isinstance(settings.data, BabiData), "the configuration has bAbI"
    return {
        "seed": seed,
        "environment": done.environment,
        "wall_seconds": done.summary["wall_seconds"],
        "stages": done.stage_seconds,
        "steps": {stage["name"]: stage["steps"] for stage in done.summary["stages"]},
        "curve": curve(done.rows("memory_aware")),
        "tasks": {
            str(number): task_report(number, seed, folder, out, done.where)
            for number in settings.data.tasks
        },
    }


if __name__ == "__main__":
    asked, source = int(sys.argv[1]), str(Path(sys.argv[2]).resolve())
    target = Path(sys.argv[3] if len(sys.argv) > 3 else "runs").resolve()
    result = run(asked, source, target)
    record(f"babi_all-{asked}", f"python -m benchmarks.babi_all {asked} FOLDER", result)
    print({number: round(1 - task["exact"], 4) for number, task in result["tasks"].items()})
