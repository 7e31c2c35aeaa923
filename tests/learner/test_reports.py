"""What Ray Train is told of a run: each checkpoint once, after it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.storage.checkpoint import latest_checkpoint
from learner.parallel.group import Job, OneRank
from learner.recorder import Recorder
from learner.reporter import Reporter
from learner.setup import newest
from learner.stages.supervised import supervised_loop
from learner.training_state import Position
from tests.local_source import STAGES, prepared, tiny_run

SETTINGS: dict[str, Any] = {"learner": {"checkpoint_every": 2, "log_every": 1}}


def test_ray_train_is_told_once_of_each_checkpoint_when_it_is_whole(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, STAGES["sft"] | {"steps": 5}, **SETTINGS)
    directory = prepared(run)
    told: list[dict[str, Any]] = []
    there: list[int] = []

    def report(figures: dict[str, Any]) -> None:
        told.append(figures)
        checkpoint = latest_checkpoint(directory)
        assert checkpoint is not None
        there.append(checkpoint.step)

    recorder = Recorder(run, directory, None)
    try:
        supervised_loop(OneRank(report=report), Job(run, directory, 0, "local"), recorder)
    finally:
        recorder.close()
    assert told == [{"stage": "sft", "step": step} for step in (2, 4, 5)]
    assert there == [2, 4, 5], "at the moment of the report"


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_reports_after_the_recorder_knows(tmp_path: Path, rank: int) -> None:
    """Ray Train waits until all ranks have called it, so each must; the recorder counts once."""
    run = tiny_run(tmp_path, STAGES["sft"] | {"steps": 5}, **SETTINGS)
    directory = prepared(run)
    recorder = Recorder(run, directory, None)
    seconds: list[list[float]] = []

    class Rank(OneRank):
        size = 2

    group = Rank(report=lambda _: seconds.append(saved(recorder)))
    group.rank = rank  # type: ignore[misc]
    try:
        checkpoint = newest(directory)
        reporter = Reporter(group, recorder, "sft", Position.of(checkpoint, 0), checkpoint)
        reporter.state(3)
        reporter.saved()
    finally:
        recorder.close()
    (known,) = seconds
    assert len(known) == (1 if rank == 0 else 0)
    assert all(0 <= each < 60 for each in known)


def saved(recorder: Recorder) -> list[float]:
    """Seconds of the checkpoints that the recorder was told of since its last row."""
    cell = recorder._observed.state().get("checkpoint/seconds")
    return [] if cell is None else [cell[0]] * int(cell[1])
