"""Where the ranks of a run report to: one recorder merges their metrics, writes the rows, serves
Prometheus, and carries word between driver and ranks (progress one way, a request to stop the
other).

`Recorder` is a plain class; under Ray it is one named actor that the driver owns, and ranks hold a
`RecorderClient` with the same calls.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from common.actors.ask import ask, find
from common.config.run import Run
from common.failures import EngramError, InputError
from common.storage.lease import register_writer
from common.storage.run_directory import RunDirectory
from common.telemetry.host import record_disk, record_memory
from common.telemetry.jsonl import MetricsWriter, read_rows
from common.telemetry.logs import setup_logging
from common.telemetry.metrics import Metrics
from common.telemetry.prometheus import PrometheusExporter
from common.telemetry.trackers import Trackers
from learner.alerts import Alerts
from learner.hacking import SampleTexts
from learner.watch import HackingWatch

log = logging.getLogger(__name__)

ENDPOINT_FILE = "metrics_endpoint"
CALL_SECONDS = 60.0
"""Deadline of one call to the recorder; it only merges numbers and appends lines."""
NOT_BEGUN = (-1, -1)
SAMPLE_SECONDS = 10.0
"""Between two looks at the host, while the driver asks for reports."""


@dataclass
class StepReport:
    """Report to the driver: everything since it last asked."""

    stage: int = -1
    """Index of the stage that reports; -1 before the first."""
    done: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    ended: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)
    """Stage, steps done and figures of the last row, of stages that another one followed."""
    notes: list[str] = field(default_factory=list)
    phases: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Phase of each rank, and for how many seconds."""
    idle_seconds: float = 0.0
    """Since anything was reported."""
    failure: tuple[str, str, str, str] | None = None


class Recorder:
    def __init__(self, run: Run, directory: RunDirectory, resumed_step: int | None):
        register_writer(directory)
        self.run, self.directory = run, directory
        self.metrics = Metrics()
        self.writer = MetricsWriter(directory, resumed_step)
        self.trackers = Trackers(run, directory, resumed_step)
        self.exporter = PrometheusExporter(run.metrics.host, run.metrics.port, run.name)
        directory.write_text(ENDPOINT_FILE, self.exporter.url + "\n")
        self._last_saved = self._last_step = time.time()
        self._sampled = -math.inf
        self._observed = Metrics()
        """For the next row, whatever `begin` takes back before it."""
        self._begun = NOT_BEGUN
        self._waiting: dict[int, dict[int, dict[str, Any]]] = {}
        self._report = StepReport()
        self._phases: dict[str, tuple[str, float]] = {}
        self._moved = time.monotonic()
        self._stop = False
        self._alerts = Alerts()
        self._watch = HackingWatch(read_rows(directory))
        self._samples: dict[str, tuple[float, str]] = {}
        """For alarms on reward hacking, of the row that comes next."""

    # --- from ranks ---

    def begin(
        self,
        stage: int,
        done: int,
        global_step: int,
        metrics_state: Mapping[str, Any] | None,
    ) -> None:
        """Stage number `stage` of the run begins, or a restarted group goes on with it from `done`:
        what was recorded past `global_step` is taken back."""
        if self._begun == (stage, global_step - done):
            self._observed.record("fleet/restarts", 1, pool="learner")
        self._begun = stage, global_step - done
        if self.writer.last_step > global_step:
            self.writer = MetricsWriter(self.directory, global_step)
            self.trackers.rewind(global_step)
            self._watch = HackingWatch(read_rows(self.directory))
        if metrics_state is None:
            self.metrics = Metrics()
        else:
            self.metrics.load_state_dict(metrics_state)
        self._waiting.clear()
        before = self._report
        if before.stage not in (-1, stage):
            before.ended.append((before.stage, before.done, before.figures))
        self._report = StepReport(stage, done, {}, before.ended, before.notes)
        self._moved = time.monotonic()

    def record(
        self, rank: int, ranks: int, done: int, global_step: int, state: dict[str, Any]
    ) -> None:
        """One rank's observations up to a step; when all ranks have reported it, they become one
        row."""
        parts = self._waiting.setdefault(global_step, {})
        parts[rank] = state
        self._moved = time.monotonic()
        if len(parts) < ranks:
            return
        for _, part in sorted(self._waiting.pop(global_step).items()):
            self.metrics.merge(part)
        self.metrics.merge(self._observed.drain())
        self._last_step = time.time()
        self._sample()
        steps = sum(each.total_steps for each in self.run.stages)
        self.metrics.record("run/progress", global_step / steps)
        stage = self.run.stages[self._begun[0]].stage
        row = self.metrics.flush(global_step, stage)
        lost = [key for key, value in row.items() if value is None]
        self.metrics.record("run/not_finite", len(lost))
        alarms = self._watch.look(row)
        for alarm in alarms:
            self.metrics.record("hacking/alarms", 1, kind=alarm.kind)
        row |= self.metrics.flush(global_step, stage)
        self.writer.write(row)
        self.trackers.write(row)
        self.exporter.publish(self.metrics)
        told = self._alerts.sentences(global_step, row)
        if lost:
            told.append(f"step {global_step}: not a finite number: {', '.join(lost)}")
        told += self._alerts.hacking(global_step, alarms, self._samples)
        self._warn(told)
        self._samples = {}
        self._report.done = done
        self._report.figures = {
            key: value
            for key, value in row.items()
            if isinstance(value, int | float) and key not in ("step", "time")
        }

    def observe(self, state: dict[str, Any]) -> None:
        """Merge metrics that `Metrics.drain` gave outside a rank's step: they go into the next
        row."""
        self._observed.merge(state)

    def saved(self, seconds: float) -> None:
        """A checkpoint is complete, `seconds` after it was begun."""
        self._last_saved = time.time()
        self._observed.record("checkpoint/seconds", seconds)
        self._show()

    def observe_last(
        self,
        state: dict[str, Any],
        stage: str,
        global_step: int,
        metrics_state: Mapping[str, Any] | None,
    ) -> None:
        """Gauges of the weights that a stage ended with, for the row of its last step: there may be
        no next one.

        metrics_state: of their checkpoint, for a recorder in whose time no stage has begun.
        """
        if self._begun == NOT_BEGUN and metrics_state is not None:
            self.metrics.load_state_dict(metrics_state)
        found = Metrics()
        found.merge(state)
        row = found.flush(global_step, stage)
        self.writer.add(row)
        self.trackers.write(row)
        self._warn(self._alerts.hacking(global_step, self._watch.look(row), {}))
        self.metrics.merge(state)  # to be shown; a next stage begins with what the checkpoint holds
        self.exporter.publish(self.metrics)

    def samples(self, samples: SampleTexts) -> None:
        """Take answers of one rank's episodes for the alarms of the next row; of each kind, the one
        that goes farthest is told."""
        for kind, (figure, text) in samples.items():
            if kind not in self._samples or figure > self._samples[kind][0]:
                self._samples[kind] = figure, text

    def _show(self) -> None:
        """Look at the host, and have Prometheus see it before the next row."""
        self._sampled = time.monotonic()
        self._sample()
        self.exporter.publish(self.metrics)

    def _sample(self) -> None:
        """Gauges of this moment."""
        self.metrics.record("time/last_step", self._last_step)
        self.metrics.record("checkpoint/last_saved", self._last_saved)
        record_memory(self.metrics, "driver")
        record_disk(self.metrics, self.directory)

    def metrics_state(self) -> dict[str, Any]:
        """For the checkpoint."""
        self.metrics.merge(self._observed.drain())
        return self.metrics.state_dict()

    def phase(self, who: str, phase: str) -> None:
        self._phases[who] = (phase, time.monotonic())

    def note(self, text: str) -> None:
        self._report.notes.append(text)

    def keep(self, text: str) -> None:
        """Write a text to the recorder's log, and not to the terminal."""
        log.info("%s", text)

    def _warn(self, sentences: list[str]) -> None:
        """Sentences for the terminal that the log holds too."""
        self._report.notes += sentences
        for sentence in sentences:
            log.warning("%s", sentence)

    def stop_requested(self) -> bool:
        return self._stop

    def fail(self, failure: EngramError, trace: str) -> None:
        """Keep a failure that no restart mends, for the driver to raise. trace: of the rank, since
        it does not travel with an exception."""
        where = failure.where if isinstance(failure, InputError) else ""
        what = failure.what if isinstance(failure, InputError) else str(failure)
        self._report.failure = (type(failure).__name__, where, what, trace)

    def failed(self) -> bool:
        return self._report.failure is not None

    # --- from the driver ---

    def open_log(self) -> None:
        """Have this process log to the run's folder, where the recorder is one of its own."""
        setup_logging("recorder", self.directory)

    def request_stop(self) -> None:
        self._stop = True

    def url(self) -> str:
        return self.exporter.url

    def report(self) -> StepReport:
        now = time.monotonic()
        if now - self._sampled > SAMPLE_SECONDS:
            self._show()
        taken = self._report
        self._report = StepReport(
            taken.stage, taken.done, taken.figures, [], [], {}, 0.0, taken.failure
        )
        taken.phases = {who: (phase, now - since) for who, (phase, since) in self._phases.items()}
        taken.idle_seconds = now - self._moved
        return taken

    def close(self) -> None:
        self.trackers.close()
        self.exporter.close()


def recorder_name(namespace: str) -> str:
    return f"{namespace}-recorder"


class RecorderClient:
    """The recorder as a rank or the driver sees it: the same calls, each with a deadline.

    What they raise says that the recorder failed (`common/actors/ask.py`): a recorder that is gone
    is an InfraFailure of the rank, after which its group starts again, and no bug of its own."""

    def __init__(self, handle: Any):
        self._handle = handle

    @classmethod
    def connect(cls, namespace: str) -> RecorderClient:
        return cls(find(recorder_name(namespace), namespace))

    @classmethod
    def start(
        cls, run: Run, directory: RunDirectory, namespace: str, resumed_step: int | None
    ) -> RecorderClient:
        # On the driver's node: the run directory's host, and where a reader looks for the endpoint.
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        actor = ray.remote(Recorder).options(
            name=recorder_name(namespace),
            namespace=namespace,
            num_cpus=0,
            scheduling_strategy=strategy,
        )
        client = cls(actor.remote(run, directory, resumed_step))
        client.url()
        client._call("open_log")
        return client

    def _call(self, method: str, *args: Any) -> Any:
        reason = f"the recorder to {method.replace('_', ' ')}"
        return ask(self._handle, method, *args, deadline=CALL_SECONDS, reason=reason)

    def begin(
        self,
        stage: int,
        done: int,
        global_step: int,
        metrics_state: Mapping[str, Any] | None,
    ) -> None:
        self._call("begin", stage, done, global_step, metrics_state)

    def record(
        self, rank: int, ranks: int, done: int, global_step: int, state: dict[str, Any]
    ) -> None:
        self._call("record", rank, ranks, done, global_step, state)

    def observe(self, state: dict[str, Any]) -> None:
        self._call("observe", state)

    def observe_last(
        self,
        state: dict[str, Any],
        stage: str,
        global_step: int,
        metrics_state: Mapping[str, Any] | None,
    ) -> None:
        self._call("observe_last", state, stage, global_step, metrics_state)

    def saved(self, seconds: float) -> None:
        self._call("saved", seconds)

    def metrics_state(self) -> dict[str, Any]:
        return self._call("metrics_state")

    def phase(self, who: str, phase: str) -> None:
        self._handle.phase.remote(who, phase)

    def note(self, text: str) -> None:
        """Not waited for: it may come from an event loop."""
        self._handle.note.remote(text)

    def samples(self, samples: SampleTexts) -> None:
        """Not waited for: calls of one rank arrive in order, and its row comes after."""
        self._handle.samples.remote(samples)

    def keep(self, text: str) -> None:
        self._handle.keep.remote(text)

    def stop_requested(self) -> bool:
        return self._call("stop_requested")

    def fail(self, failure: EngramError, trace: str) -> None:
        self._call("fail", failure, trace)

    def failed(self) -> bool:
        return self._call("failed")

    def request_stop(self) -> None:
        self._call("request_stop")

    def url(self) -> str:
        return self._call("url")

    def report(self) -> StepReport:
        return self._call("report")

    def close(self) -> None:
        self._call("close")
        ray.kill(self._handle)
