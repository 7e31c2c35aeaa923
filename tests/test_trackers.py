"""Rows of metrics in TensorBoard's files, read back by TensorBoard, and trackers that fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.config.run import MLflow
from common.failures import InputError
from common.storage.run_directory import RunDirectory
from common.telemetry import trackers
from common.telemetry.tensorboard import TensorBoard
from common.telemetry.trackers import Trackers, require_trackers
from tests.local_source import tiny_run


def row(step: int, value: float) -> dict[str, Any]:
    return {
        "step": step,
        "stage": "mrl",
        "time": 1000.0 + step,
        "objective/scores": value,
        "reward/component{component=bleu,cohort=trained}": 0.5,
        "checkpoint/seconds:p95": 2.0,
        "train/loss_lm": None,
    }


def read(folder: Path, tag: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_a_resumed_run_takes_back_what_was_past_its_step(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "mrl")
    directory = RunDirectory(run.runs, run.name)
    first = Trackers(run, directory, None)
    for step in (1, 2, 3):
        first.write(row(step, step / 2))
    first.rewind(2)
    first.write(row(3, 7.0))
    first.close()
    folder = Path(directory.path("tensorboard"))
    assert read(folder, "objective/scores") == [(1, 0.5), (2, 1.0), (3, 7.0)]
    assert read(folder, "reward/component/bleu/trained") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert read(folder, "checkpoint/seconds/p95") == [(1, 2.0), (2, 2.0), (3, 2.0)]
    assert "train/loss_lm" not in EventAccumulator(str(folder)).Reload().Tags()["scalars"]


def test_a_run_behind_a_uri_has_its_files_too(tmp_path: Path) -> None:
    run = tiny_run("memory://trackers", "mrl")
    directory = RunDirectory("memory://trackers", "tiny")
    board = TensorBoard(run, directory, None)
    board.write(row(1, 0.5))
    board.close()
    (name,) = directory.names("tensorboard")
    (tmp_path / name).write_bytes(
        directory.filesystem.cat_file(directory.inner(f"tensorboard/{name}"))
    )
    assert read(tmp_path, "objective/scores") == [(1, 0.5)]


def test_a_tracker_that_fails_is_told_of_once_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(TensorBoard):
        def write(self, _: Any) -> None:
            raise ConnectionError("gone")

    monkeypatch.setattr(trackers, "TensorBoard", Broken)
    run = tiny_run(tmp_path, "mrl")
    found = Trackers(run, RunDirectory(run.runs, run.name), None)
    found.write(row(1, 0.5))
    found.write(row(2, 0.5))
    found.close()
    assert caplog.text.count("tensorboard gets no more metrics") == 1
    assert "ConnectionError: gone" in caplog.text


def test_a_tracker_that_is_not_installed_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(tmp_path, "mrl", metrics={"mlflow": {"uri": "sqlite:///x"}})
    assert run.metrics.mlflow == MLflow(uri="sqlite:///x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mlflow" else 1)
    with pytest.raises(InputError, match=r"metrics.mlflow: needs mlflow.*engram-rl\[mlflow\]"):
        require_trackers(run)
