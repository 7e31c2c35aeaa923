"""A rank's reports to the recorder. All ranks call these together."""

from __future__ import annotations

import time

import torch

from common.storage.checkpoint import Checkpoint
from common.telemetry.host import record_memory
from common.telemetry.metrics import Metrics
from learner.hacking import Samples
from learner.parallel.group import Group
from learner.recorder import Recorder, RecorderClient
from learner.training_state import Position, TrainingState


class Reporter:
    """One rank's line to the recorder."""

    def __init__(
        self,
        group: Group,
        recorder: Recorder | RecorderClient,
        stage: str,
        position: Position,
        checkpoint: Checkpoint,
    ):
        self.group, self.recorder, self.stage, self.position = group, recorder, stage, position
        self._saving_since, self._saving_step = 0.0, 0
        if group.rank == 0:
            totals = TrainingState.of(checkpoint).metrics
            recorder.begin(position.stage, position.in_stage, checkpoint.step, totals)
        # no rank may record before the recorder has taken back what a dead group recorded
        self.barrier()

    def barrier(self) -> None:
        self.group.sum(torch.zeros(1, device=self.group.device))

    def record(self, done: int, metrics: Metrics) -> None:
        """Send what was recorded since the last call; the recorder makes one row of all ranks'
        parts."""
        metrics.record("run/stage", self.position.stage)
        record_memory(metrics, "learner")
        self.recorder.record(
            self.group.rank, self.group.size, done, self.position.base + done, metrics.drain()
        )

    def note(self, text: str) -> None:
        """A line for the terminal."""
        self.recorder.note(text)

    def tell_of_lost_moments(self, checkpoint: Checkpoint) -> None:
        """Say that the run goes on from a checkpoint that has no state of optimisers."""
        if self.group.rank == 0:
            self.note(
                f"warning: {self.stage} goes on from {checkpoint.name}, which has no "
                "state of its optimisers: only the newest checkpoint keeps it. They begin without "
                "moments, so what follows differs from a run that was not interrupted"
            )

    def show(self, samples: Samples) -> None:
        """Answers for the alarms of the row that comes next."""
        self.recorder.samples(samples.texts())

    def phase(self, phase: str) -> None:
        self.recorder.phase(f"learner[{self.group.rank}]", phase)

    def stop_requested(self) -> bool:
        """Whether the driver asked to stop; all ranks get the same answer."""
        asked = self.group.rank == 0 and self.recorder.stop_requested()
        return bool(self.group.sum(torch.tensor(float(asked), device=self.group.device)) > 0)

    def state(self, done: int) -> TrainingState:
        """The part of a checkpoint's state that every stage has."""
        self.barrier()  # every rank's row is in before its totals are saved
        self._saving_step = self.position.base + done
        if self.group.rank == 0:
            self._saving_since = time.perf_counter()
            metrics = Metrics()
            metrics.record("checkpoint/saved", 1)
            # before it is: the count belongs to the totals that it holds
            self.recorder.observe(metrics.drain())
        totals = self.recorder.metrics_state() if self.group.rank == 0 else None
        return TrainingState(self.position.stage, self.stage, done, totals)

    def saved(self) -> None:
        """All ranks wait here until rank 0 has written: one that dies later finds the
        checkpoint."""
        if self.group.rank == 0:
            self.recorder.saved(time.perf_counter() - self._saving_since)
        self.barrier()
        self.group.report({"stage": self.stage, "step": self._saving_step})
