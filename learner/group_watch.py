"""The driver's look after a learner group that is running."""

from __future__ import annotations

import logging
import time

from common.storage.lease import BEAT_SECONDS
from common.telemetry.metrics import Metrics
from common.telemetry.progress import Progress
from learner.parallel.group import Job
from learner.recorder import RecorderClient, StepReport
from learner.rollout_group import RolloutGroup
from learner.summary import Summary

log = logging.getLogger(__name__)

STALL_SECONDS = 120.0
"""Without any report for so long, the driver says what every actor is doing."""
KEEP_SECONDS = 60.0
"""A driver that is killed loses at most so much of the wall time in its summary."""


class GroupWatch:
    """Looks after a learner group that is running: its run's lease and summary, its progress, and
    stalls."""

    def __init__(
        self,
        job: Job,
        recorder: RecorderClient,
        progress: Progress,
        summary: Summary,
        half: RolloutGroup | None,
    ):
        self._job, self._recorder, self._progress = job, recorder, progress
        self._summary, self._half = summary, half
        self._warned, self._kept, self._held = 0.0, time.monotonic(), time.monotonic()
        self._stage = -1
        self._begin(job.stage)

    def look(self) -> None:
        """Do what is due. Raises LeaseLost where the run is another driver's now."""
        now = time.monotonic()
        if now - self._held > BEAT_SECONDS:
            self._held = now
            self._job.directory.require_lease()
        if now - self._kept > KEEP_SECONDS:
            self._kept = now
            self._summary.write("running")
        report = self.show()
        if report.idle_seconds > STALL_SECONDS and time.monotonic() - self._warned > STALL_SECONDS:
            self._warned = time.monotonic()
            metrics = Metrics()
            metrics.record("run/watchdog", 1, waiting_for=longest_phase(report))
            self._recorder.observe(metrics.drain())
            seconds, phases = report.idle_seconds, describe(report, self._half)
            log.warning("nothing was reported for %.0f s; %s", seconds, phases)

    def show(self) -> StepReport:
        """Show what was reported since the last time."""
        report = self._recorder.report()
        show_notes(report, self._progress)
        current = (report.stage, report.done, report.figures)
        for stage, done, figures in (*report.ended, current):
            if stage >= self._job.stage:  # not of a group before this one
                self._begin(stage)
                self._progress.update(done, **figures)
        return report

    def _begin(self, stage: int) -> None:
        if stage != self._stage:
            self._stage = stage
            self._summary.begin(stage)
            settings = self._job.run.stages[stage]
            self._progress.stage(settings.stage, settings.total_steps)


def show_notes(report: StepReport, progress: Progress) -> None:
    for note in report.notes:
        progress.note(note)


def longest_phase(report: StepReport) -> str:
    """Phase of the rank that has been in its phase for longest."""
    return max(report.phases.values(), key=lambda phase: phase[1], default=("start", 0.0))[0]


def describe(report: StepReport, half: RolloutGroup | None) -> str:
    """Phase of every actor, and for how long: the first thing to read when a run stands still."""
    parts = [
        f"{who} in {phase} for {seconds:.0f} s"
        for who, (phase, seconds) in sorted(report.phases.items())
    ]
    if half is not None:
        status = half.status()
        parts.append(f"conductor {status['phase']}, waiting for {status['reason']}")
    return "; ".join(parts) or "no actor has said what it is doing"
