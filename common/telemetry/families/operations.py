"""Metrics of the run itself: actors, checkpoints, progress."""

from __future__ import annotations

from common.telemetry.metric import SECONDS, Metric, counter, gauge, histogram

OPERATIONS: list[Metric] = [
    gauge(
        "conductor/dealt",
        "episodes",
        "last",
        "the whole run, by its journal",
        "Tasks dealt: the sum of what became of them",
    ),
    gauge(
        "conductor/trained", "episodes", "last", "the whole run, by its journal", "Tasks trained on"
    ),
    gauge(
        "conductor/dropped",
        "episodes",
        "last",
        "the whole run, by its journal",
        "Tasks given up, to be dealt again",
        ("reason",),
    ),
    gauge(
        "conductor/failed",
        "episodes",
        "last",
        "the whole run, by its journal",
        "Tasks that cannot be played or scored",
        ("reason",),
    ),
    gauge(
        "conductor/in_flight", "episodes", "last", "this moment", "Tasks dealt and not yet ended"
    ),
    gauge(
        "conductor/lost",
        "episodes",
        "last",
        "the whole run, by its journal",
        "Tasks of which nothing is known: must stay 0",
    ),
    gauge(
        "fleet/workers",
        "workers",
        "last",
        "this moment",
        "Workers of a pool by state",
        ("pool", "state"),
    ),
    counter(
        "fleet/restarts",
        "restarts",
        "one worker, or the learner group, that serves again after a death",
        "Restarts",
        ("pool",),
    ),
    counter(
        "fleet/retries",
        "calls",
        "one call tried again by the pool after an infra failure; halves of a batch of rewards "
        "are new calls",
        "Calls tried again",
        ("pool",),
    ),
    counter(
        "time/phase_seconds",
        "s",
        "one second that one process of the role spent in the phase",
        "Where time goes; its rate is the share of each phase. The conductor waits for many "
        "things at once: its phases overlap",
        ("phase", "role"),
    ),
    histogram("checkpoint/seconds", "s", SECONDS, "checkpoints", "Time to save one"),
    gauge(
        "checkpoint/last_saved",
        "unix s",
        "last",
        "the whole run",
        "Moment of the newest checkpoint or, until this driver has saved one, of its start: a "
        "crash takes the run back to it",
    ),
    counter("checkpoint/saved", "checkpoints", "one checkpoint begun", "Checkpoints"),
    counter(
        "run/watchdog",
        "alarms",
        "one time that no rank had reported anything for too long",
        "Stalls",
        ("waiting_for",),
    ),
    counter(
        "run/resumes",
        "starts",
        "one start of the driver from a checkpoint",
        "Times the run was resumed",
    ),
    counter(
        "run/not_finite",
        "values",
        "one value of a row that is NaN or infinite, and null in metrics.jsonl",
        "Values that are no number",
    ),
    gauge(
        "time/last_step",
        "unix s",
        "last",
        "the whole run",
        "Moment at which all ranks had finished a step; until this driver has seen one, of its "
        "start",
    ),
    gauge(
        "host/memory_used",
        "fraction",
        "max",
        "memory of a host, or of a container's limit, that runs processes of the role",
        "Largest share in use, by whatever program",
        ("role",),
        "lower",
    ),
    gauge(
        "host/disk_free_bytes",
        "bytes",
        "last",
        "the disk that the run directory is on",
        "Space left; absent where the run directory is in an object store",
        better="higher",
    ),
    gauge(
        "host/disk_free",
        "fraction",
        "last",
        "the disk that the run directory is on",
        "Share of its space that is left",
        better="higher",
    ),
    gauge("run/step", "steps", "max", "the whole run", "Steps finished"),
    gauge("run/stage", "index", "max", "the whole run", "Index of the current stage, from 0"),
    gauge(
        "run/curriculum_step",
        "index",
        "last",
        "the MRL stage",
        "Index of the current curriculum step, from 0",
    ),
    gauge("run/iteration", "iterations", "last", "the MRL stage", "Iterations finished"),
    gauge(
        "run/progress",
        "fraction",
        "max",
        "steps of the whole run",
        "Share of the run that is finished",
    ),
]
