"""Where rows of metrics go besides metrics.jsonl: TensorBoard always, Weights & Biases and MLflow
by configuration.

None of them may fail a run, or keep it waiting: one that raises is told of once and left alone from
then on. metrics.jsonl is the record.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from common.config.run import Run
from common.failures import InputError
from common.storage.run_directory import RunDirectory
from common.telemetry.tensorboard import NO_FIGURES, TensorBoard, tag_of

log = logging.getLogger(__name__)

IDS = "trackers.json"
"""Ids that a run has at its trackers, so that it goes on under them when it is resumed."""


class Tracker(Protocol):
    def write(self, row: Mapping[str, Any]) -> None: ...

    def rewind(self, step: int) -> None:
        """Declare void all that was written past `step`."""

    def close(self) -> None: ...


class WandB:
    """A run of Weights & Biases under the name of ours. Rows that are written anew after a resume
    come under their step again; W&B drops those below the newest step it has."""

    def __init__(self, run: Run, directory: RunDirectory, step: int | None):
        import wandb

        settings = run.metrics.wandb
        assert settings is not None
        ids = _ids(directory)
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            mode=settings.mode,
            name=run.name,
            id=ids.get("wandb"),
            resume="allow",
            dir=None if directory.local is None else str(directory.local),
            config=run.model_dump(mode="json"),
        )
        _keep(directory, ids | {"wandb": self._run.id})

    def write(self, row: Mapping[str, Any]) -> None:
        self._run.log(figures(row), step=row["step"])

    def rewind(self, step: int) -> None:
        pass

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow under the name of ours."""

    def __init__(self, run: Run, directory: RunDirectory, step: int | None):
        from mlflow.tracking import MlflowClient

        settings = run.metrics.mlflow
        assert settings is not None
        self._client = MlflowClient(tracking_uri=settings.uri)
        ids = _ids(directory)
        if "mlflow" in ids:
            self._id = ids["mlflow"]
            self._client.update_run(self._id, status="RUNNING")
        else:
            found = self._client.get_experiment_by_name(settings.experiment)
            experiment = (
                self._client.create_experiment(settings.experiment)
                if found is None
                else found.experiment_id
            )
            self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
            self._client.log_dict(self._id, run.model_dump(mode="json"), "config.json")
            _keep(directory, ids | {"mlflow": self._id})

    def write(self, row: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        moment = int(row["time"] * 1000)
        self._client.log_batch(
            self._id,
            metrics=[
                Metric(tag, float(value), moment, row["step"])
                for tag, value in figures(row).items()
            ],
        )

    def rewind(self, step: int) -> None:
        pass

    def close(self) -> None:
        self._client.set_terminated(self._id)


def figures(row: Mapping[str, Any]) -> dict[str, float]:
    """Figures of a row by tag."""
    return {
        tag_of(key): value
        for key, value in row.items()
        if key not in NO_FIGURES and isinstance(value, int | float)
    }


Make = Callable[[Run, RunDirectory, int | None], Tracker]


def _chosen(run: Run) -> dict[str, Make]:
    chosen: dict[str, Make] = {"tensorboard": TensorBoard}
    if run.metrics.wandb is not None:
        chosen["wandb"] = WandB
    if run.metrics.mlflow is not None:
        chosen["mlflow"] = MLflow
    return chosen


def require_trackers(run: Run) -> None:
    """Raises InputError where one that the configuration names is not installed."""
    for name in _chosen(run):
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"metrics.{name}",
                f"needs {name}, which is not installed here: pip install 'engram-rl[{name}]'",
            )


class Trackers:
    """All trackers of a run. step: that it goes on from; None: it begins."""

    def __init__(self, run: Run, directory: RunDirectory, step: int | None):
        self._open: dict[str, Tracker] = {}
        for name, make in _chosen(run).items():
            with self._kept_apart(name):
                self._open[name] = make(run, directory, step)

    def write(self, row: Mapping[str, Any]) -> None:
        """Take what `Metrics.flush` gave."""
        for name, tracker in list(self._open.items()):
            with self._kept_apart(name):
                tracker.write(row)

    def rewind(self, step: int) -> None:
        """The run goes back to `step`."""
        for name, tracker in list(self._open.items()):
            with self._kept_apart(name):
                tracker.rewind(step)

    def close(self) -> None:
        for name, tracker in list(self._open.items()):
            with self._kept_apart(name):
                tracker.close()
        self._open = {}

    @contextmanager
    def _kept_apart(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as failure:  # noqa: BLE001 - a foreign service must not fail the run
            self._open.pop(name, None)
            log.warning(
                "%s gets no more metrics of this run (%s: %s); metrics.jsonl has them all",
                name, type(failure).__name__, failure,
            )  # fmt: skip


def _ids(directory: RunDirectory) -> dict[str, str]:
    return json.loads(directory.read_text(IDS)) if directory.exists(IDS) else {}


def _keep(directory: RunDirectory, ids: Mapping[str, str]) -> None:
    directory.write_json(IDS, ids)
