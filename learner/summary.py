"""RUN/summary.json: what a run came to. Written as the run goes, so a run that is cut short has one
too, and goes on with it.

What is still owed of a run (an evaluation, a stage's figures) is read from here and from the last
checkpoint, never from what a process
remembers: a run may be killed between any two lines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from common.config.run import Run
from common.failures import InputError
from common.storage.lease import is_alive
from common.storage.lease_records import newest
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from common.telemetry.registry import REGISTRY
from common.telemetry.series import parse_key
from learner.evaluation.figures import Evaluation, Figure
from learner.evaluation.match import MATCH
from learner.evaluation.retention import FIGURES

SUMMARY = "summary.json"


class Summary:
    """The summary as it grows. `wall_seconds` adds up over restarts; time between them does not
    count.

    since: `time.monotonic()` of the run's start in this process; None: now.
    """

    def __init__(self, run: Run, directory: RunDirectory, since: float | None = None):
        self.run, self.directory = run, directory
        self._written = time.monotonic() if since is None else since
        self._current: int | None = None
        """Index of the stage that time is spent in."""
        self.value: dict[str, Any] = {
            "name": run.name,
            "status": "running",
            "wall_seconds": 0.0,
            "stages": [],
            "retention": {},
        }
        if directory.exists(SUMMARY):
            self.value |= read_summary(directory) | {"status": "running"}

    @contextmanager
    def stage(self, index: int) -> Iterator[None]:
        """Time inside the block is spent in stage number `index` of the run, and then in those that
        `begin` names; a stage that was resumed adds up.

        However the block ends, the stages' figures up to there are kept.
        """
        self.begin(index)
        try:
            yield
        finally:
            self._end()

    def begin(self, index: int) -> None:
        """Time from here is spent in stage number `index`."""
        if index != self._current:
            self._end()
            self._current = index

    def _end(self) -> None:
        """Write the time up to here, which is of the current stage if there is one, with its
        figures."""
        if self._current is not None:
            self.refresh(self._current)
        self.write("running")
        self._current = None

    def refresh(self, index: int) -> None:
        """Read the figures of stage number `index` anew: a driver that was killed has not kept
        them."""
        rows = read_rows(self.directory)
        self._entry(index).update(
            steps=steps_of_stage(rows, index), metrics=stage_metrics(rows, index)
        )

    def evaluated(self, name: str, index: int) -> bool:
        """Whether the evaluation `name` ("before_mrl", "after_mrl") was made at stage number
        `index`."""
        return any(
            entry["index"] == index and name in entry.get("evaluated", ())
            for entry in self.value["stages"]
        )

    def keep_evaluation(self, name: str, index: int) -> None:
        """Note that the evaluation `name` was made at stage number `index`, and write it with all
        that was kept of it."""
        entry = self._entry(index)
        entry["evaluated"] = [*entry.get("evaluated", ()), name]
        self.write("running")

    def discard_evaluation(self, name: str, index: int) -> None:
        """The weights that it was of are trained on: a stage that got more steps, or went back to
        an older checkpoint."""
        if self.evaluated(name, index):
            entry = next(entry for entry in self.value["stages"] if entry["index"] == index)
            entry["evaluated"] = [each for each in entry["evaluated"] if each != name]
            self.write("running")

    def _entry(self, index: int) -> dict[str, Any]:
        stages: list[dict[str, Any]] = self.value["stages"]
        for entry in stages:
            if entry["index"] == index:
                return entry
        name = self.run.stages[index].stage
        entry = {"index": index, "name": name, "wall_seconds": 0.0, "steps": 0, "metrics": {}}
        self.value["stages"] = sorted([*stages, entry], key=lambda each: each["index"])
        return entry

    def keep_figures(self, when: str, found: Evaluation) -> None:
        """An evaluation "before_mrl" or "after_mrl": recall by distance under that name in
        "retention", and every other figure of facts under its own; agreement with references in
        "match" and mean rewards in "scores". Each has its intervals and counts."""
        self._keep("retention", found.figures["recall"], when)
        for name in FIGURES[1:]:
            self._keep("retention", found.figures[name], name, when)
        self._keep_others(when, found.figures)

    def keep_controls(
        self, found: Evaluation, most_frequent: Figure, training: Mapping[str, Figure]
    ) -> None:
        """The controls of the last evaluation, figures of training conversations among them, and
        how many facts it asked for by distance."""
        self._keep("retention", training["recall"], "training")
        self._keep("retention", found.erased["recall"], "erased")
        self._keep("retention", most_frequent, "most_frequent")
        self._keep_others("training", training)
        self._keep_others("erased", found.erased)
        self.value["counts"] = found.counts

    def keep_warnings(self, warnings: list[str]) -> None:
        """Keep warnings for a reader of the last evaluation."""
        self.value["warnings"] = warnings

    def _keep_others(self, when: str, figures: Mapping[str, Figure]) -> None:
        """Keep the figures that conversations without facts have too."""
        for name in MATCH:
            self._keep("match", figures[name], name, when)
        self._keep("scores", figures["scores"], when)

    def _keep(self, section: str, figure: Figure, *names: str) -> None:
        held = self.value.setdefault(section, {})
        for into, value in (
            (held, figure.share()),
            (
                held.setdefault("intervals", {}),
                {key: [low, high] for key, (low, high) in figure.intervals().items()},
            ),
            (held.setdefault("counts", {}), figure.totals()),
        ):
            for name in names[:-1]:
                into = into.setdefault(name, {})
            into[names[-1]] = value

    def write(self, status: str) -> dict[str, Any]:
        """Write, with the time since the last write; returns what was written."""
        now = time.monotonic()
        passed, self._written = now - self._written, now
        self.value["status"] = status
        self.value["wall_seconds"] += passed
        if self._current is not None:
            self._entry(self._current)["wall_seconds"] += passed
        self.directory.write_summary(self.value)
        return self.value


def read_summary(directory: RunDirectory) -> dict[str, Any]:
    """RUN/summary.json. InputError where it is not one."""
    try:
        value = json.loads(directory.read_text(SUMMARY))
        kinds = {"wall_seconds": int | float, "stages": list, "retention": dict}
        wrong = [key for key, kind in kinds.items() if not isinstance(value[key], kind)]
        wrong += [
            f"stages.{i}"
            for i, stage in enumerate(value["stages"])
            if not {"index", "name", "wall_seconds"} <= stage.keys()
        ]
        if wrong:
            raise ValueError(f"{wrong[0]} is not what it should be")
    except (ValueError, TypeError, KeyError, AttributeError) as broken:
        raise InputError(
            directory.path(SUMMARY),
            f"is no summary of a run ({type(broken).__name__}: {broken}); put it back, or remove "
            "it: the figures of stages are then read "
            "anew from metrics.jsonl, but those of an evaluation before MRL are lost if MRL has "
            "begun",
        ) from broken
    return value


def run_status(directory: RunDirectory) -> str:
    """Status of a run: "running", "done", "stopped", "failed", "killed", or "new" where it never
    began.

    summary.json alone cannot say: a driver that was killed wrote "running" and nothing after it. So
    the lease counts first.
    """
    return "running" if is_alive(newest(directory)) else last_status(directory)


def unfinished(directory: RunDirectory) -> str | None:
    """A sentence for readers of a run whose figures will still change, or were cut short; None
    where there is nothing to say."""
    status = run_status(directory) if directory.exists(SUMMARY) else "new"
    if status not in ("running", "killed"):
        return None
    rows = read_rows(directory)
    return (
        f"run {directory.name} {'is running' if status == 'running' else 'was killed'} (step "
        f"{rows[-1]['step'] if rows else 0})"
    )


def last_status(directory: RunDirectory) -> str:
    """How the run's last driver ended, for those who know that it is over."""
    if not directory.exists(SUMMARY):
        return "killed" if directory.exists("config.yaml") else "new"
    status = str(read_summary(directory).get("status", "running"))
    return "killed" if status == "running" else status


def steps_of_stage(rows: Sequence[Mapping[str, Any]], stage: int) -> int:
    """Steps that stage number `stage` has done, by the rows of metrics.jsonl."""
    own = [row["step"] for row in rows if row.get("run/stage") == stage]
    before = [row["step"] for row in rows if row.get("run/stage", stage) < stage]
    return max(own) - max(before, default=0) if own else 0


def stage_metrics(rows: Sequence[Mapping[str, Any]], stage: int) -> dict[str, dict[str, float]]:
    """First, best and last value of each metric over the rows of a stage, by index; counters and
    what has no better end have no best."""
    figures: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.get("run/stage") != stage:
            continue
        for key, value in row.items():
            if key in ("step", "stage", "time") or value is None:
                continue
            held = figures.setdefault(key, {"first": value})
            held["last"] = value
            metric = REGISTRY.get(parse_key(key).name)  # of an older version's row it may know none
            better = metric.better if metric is not None else None
            if better is not None:
                choose = max if better == "higher" else min
                held["best"] = choose(held.get("best", value), value)
    return figures
