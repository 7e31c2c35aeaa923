"""Processes are killed in the middle of a run, and the run goes on: rollout worker, reward worker,
learner rank."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from common.telemetry.progress import QuietProgress
from learner.driver import train
from rollout.journal.journal import Journal, outcomes
from tests.killing import Killer
from tests.local_source import STAGES, tiny_run

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(300)]

VICTIMS = {3: "ray::RolloutWorker", 6: "ray::RewardWorker", 10: "ray::RayTrainWorker"}
"""Killed when the row of a step was written, by the beginning of the process's title. Checkpoints
stand at 3, 6, 9, …: step 10 is lost."""
ITERATIONS = 13


def test_run_goes_on_when_its_processes_are_killed_and_its_books_add_up(tmp_path: Path) -> None:
    curriculum = [
        {"name": "all", "iterations": ITERATIONS, "max_steps": 3, "reset_probability": 0.5}
    ]
    settings: dict[str, Any] = {
        "learner": {"ranks": 2, "checkpoint_every": 3, "batch_deadline": 240},
        "rollout": {"workers": 2, "slots": 4, "sampling": {"max_new_tokens": 8}, "deadline": 120},
        "rewards": {"workers": 2, "batch_tokens": 400, "deadline": 120},
    }
    run = tiny_run(tmp_path, STAGES["mrl"] | {"curriculum": curriculum}, name="chaos", **settings)
    directory = RunDirectory(run.runs, run.name)
    killer = Killer(directory, VICTIMS)
    killer.start()
    began = time.monotonic()
    try:
        summary = train(run, QuietProgress())
    finally:
        killer.over.set()
        killer.join()
    assert time.monotonic() - began < 200
    assert killer.killed == VICTIMS
    assert summary["status"] == "done"
    assert [row["step"] for row in read_rows(directory)] == list(range(1, ITERATIONS + 1))

    ended = outcomes(Path(directory.path())).to_pylist()
    trained = [row for row in ended if row["status"] == "trained"]
    assert {row["status"] for row in ended} <= {"trained", "dropped"}
    assert (
        len(trained) == len({(row["iteration"], row["task"]) for row in trained}) == ITERATIONS * 7
    )
    dropped = {row["reason"] for row in ended if row["status"] == "dropped"}
    assert any(reason.startswith("rolled back to step") for reason in dropped), (
        "the learner rank's death left no trace"
    )
    counts = Journal(Path(directory.path())).counts
    counts.check()
    assert (counts.dealt, counts.trained, counts.in_flight) == (len(ended), len(trained), 0)
