"""RUN/summary.json: what a run came to. Written anew after every stage, so a run that is cut short has one too, and goes on with it."""

from __future__ import annotations

import json
from typing import Any

from common.config.schema import Run
from common.metric_registry import REGISTRY
from common.metrics import parse_key, read_rows
from common.run_directory import RunDirectory

SUMMARY = "summary.json"


class Summary:
    """The summary as it grows. `wall_seconds` adds up over restarts; time between them does not count."""

    def __init__(self, run: Run, directory: RunDirectory):
        self.directory = directory
        self.value: dict[str, Any] = {"name": run.name, "status": "running", "wall_seconds": 0.0, "stages": [], "retention": {}}
        if directory.exists(SUMMARY):
            self.value = json.loads(directory.read_text(SUMMARY)) | {"status": "running"}

    def spent(self, index: int, stage: str, seconds: float, steps: int) -> None:
        """Time spent in stage number `index` of the run; a stage that was resumed adds up."""
        stages: list[dict[str, Any]] = self.value["stages"]
        known: dict[str, Any] = next(
            (each for each in stages if each["index"] == index), {"index": index, "name": stage, "wall_seconds": 0.0}
        )
        entry = known | {"wall_seconds": known["wall_seconds"] + seconds, "steps": steps}
        entry["metrics"] = stage_metrics(self.directory, index)
        self.value["stages"] = sorted([*(each for each in stages if each["index"] != index), entry], key=lambda each: each["index"])

    def keep_retention(self, name: str, recall: dict[str, float], counts: dict[str, int] | None = None) -> None:
        self.value["retention"][name] = recall
        if counts is not None:
            self.value["counts"] = counts

    def write(self, status: str, seconds: float) -> dict[str, Any]:
        """Write with `seconds` more of wall time; returns what was written."""
        self.value["status"] = status
        self.value["wall_seconds"] += seconds
        self.directory.write_summary(self.value)
        return self.value


def stage_metrics(directory: RunDirectory, stage: int) -> dict[str, dict[str, float]]:
    """First, best and last value of each metric over the rows of a stage, by index; counters and what has no better end have no best."""
    figures: dict[str, dict[str, float]] = {}
    for row in read_rows(directory):
        if row.get("run/stage") != stage:
            continue
        for key, value in row.items():
            if key in ("step", "stage", "time") or value is None:
                continue
            held = figures.setdefault(key, {"first": value})
            held["last"] = value
            better = REGISTRY[parse_key(key).name].better
            if better is not None:
                choose = max if better == "higher" else min
                held["best"] = choose(held.get("best", value), value)
    return figures
