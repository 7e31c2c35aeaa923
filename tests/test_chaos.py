"""Processes are killed in the middle of a run, and the run goes on: rollout worker, reward worker,
learner rank."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from common.telemetry.progress import QuietProgress
from learner.driver import train
from rollout.journal.journal import Journal, outcomes
from tests.local_source import STAGES, tiny_run

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(300)]

VICTIMS = {3: "ray::RolloutWorker", 6: "ray::RewardWorker", 10: "ray::RayTrainWorker"}
"""Killed when the row of a step was written, by the beginning of the process's title. Checkpoints
stand at 3, 6, 9, …: step 10 is lost."""
ITERATIONS = 13


def processes_of_this_ray() -> dict[int, str]:
    """Titles of the worker processes under this test session's own raylet, by process id."""
    session = ray._private.worker._global_node.get_session_dir_path()  # type: ignore[attr-defined]
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            titles[int(entry.name)] = (
                (entry / "cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
                .strip()
            )
        except OSError:  # it ended while we looked
            continue
        parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    raylets = {
        pid for pid, title in titles.items() if "raylet" in title.split(" ")[0] and session in title
    }

    def ours(pid: int) -> bool:
        while pid in parents:
            if pid in raylets:
                return True
            pid = parents[pid]
        return False

    return {pid: title for pid, title in titles.items() if title.startswith("ray::") and ours(pid)}


class Killer(threading.Thread):
    """Sends each victim a SIGKILL once the run has come to its step; `killed` says whom and
    when."""

    def __init__(self, directory: RunDirectory):
        super().__init__()
        self.directory, self.killed, self.over = directory, dict[int, str](), threading.Event()

    def run(self) -> None:
        for step, title in VICTIMS.items():
            while not self.reached(step):
                if self.over.wait(0.02):
                    return
            victims: list[int] = []
            while not victims and not self.over.wait(0.02):
                victims = sorted(
                    pid for pid, name in processes_of_this_ray().items() if name.startswith(title)
                )
            if victims:
                os.kill(victims[0], signal.SIGKILL)
                self.killed[step] = title

    def reached(self, step: int) -> bool:
        rows = read_rows(self.directory)
        return bool(rows) and rows[-1]["step"] >= step


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
    killer = Killer(directory)
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
