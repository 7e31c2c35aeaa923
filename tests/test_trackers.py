"""Rows of metrics in TensorBoard's files, read back by TensorBoard, and trackers that fail."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
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


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Records of a file of W&B: a head of 7 bytes, then LevelDB's log of blocks of 32 KiB, in which
    a fragment has a checksum, its length, and whether it is whole, first, middle or last."""
    block, whole, last, at, held = 2**15, 1, 4, 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        held += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (whole, last):
            yield held
            held = b""


def test_wandb_gets_every_figure_and_goes_on_with_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Offline, as a user without a network has it: read back from its own log."""
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tiny_run(tmp_path, "mrl", metrics={"wandb": {"project": "p", "mode": "offline"}})
    directory = RunDirectory(run.runs, run.name)
    for resumed, steps in ((None, (1, 2)), (2, (3,))):
        found = Trackers(run, directory, resumed)
        for step in steps:
            found.write(row(step, step / 2))
        found.close()
        time.sleep(1.0)  # W&B names the folder of a run by the second that it began in
    assert "gets no more metrics" not in caplog.text
    written, ids = [], set()
    for path in sorted(Path(directory.path()).glob("wandb/offline-run-*/*.wandb")):
        for data in wandb_records(path.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            for item in record.history.item:
                if (item.nested_key or [item.key])[0] == "objective/scores":
                    written.append((record.history.step.num, float(item.value_json)))
    assert written == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert ids == {json.loads(directory.read_text(trackers.IDS))["wandb"]}


def test_mlflow_gets_every_figure_and_goes_on_with_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a database of its own, read back by its client."""
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)  # MLflow keeps artifacts of such a database in ./mlruns
    place = f"sqlite:///{tmp_path}/mlflow.db"
    run = tiny_run(tmp_path, "mrl", metrics={"mlflow": {"uri": place, "experiment": "e"}})
    directory = RunDirectory(run.runs, run.name)
    for resumed, steps in ((None, (1, 2)), (2, (3,))):
        found = Trackers(run, directory, resumed)
        for step in steps:
            found.write(row(step, step / 2))
        found.close()
    assert "gets no more metrics" not in caplog.text
    client = MlflowClient(tracking_uri=place)
    experiment = client.get_experiment_by_name("e")
    (only,) = client.search_runs([experiment.experiment_id])
    assert only.info.run_name == run.name
    assert only.info.status == "FINISHED"
    for tag, values in {
        "objective/scores": [0.5, 1.0, 1.5],
        "reward/component/bleu/trained": [0.5, 0.5, 0.5],
    }.items():
        history = client.get_metric_history(only.info.run_id, tag)
        assert [(each.step, each.value) for each in history] == list(enumerate(values, 1))
