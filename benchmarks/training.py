"""Runs of benchmarks, each trained by the command line in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from common.config.loader import load_run

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
SECONDS = 7200.0
"""Most seconds for one training."""


class TrainedRun:
    """A run that is done, by its folder."""

    def __init__(self, where: Path):
        self.where = where

    @cached_property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.where / "summary.json").read_text())
        return found

    @property
    def environment(self) -> dict[str, Any]:
        """Versions and commit that it was trained with."""
        found: dict[str, Any] = json.loads((self.where / "environment.json").read_text())
        return found

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Wall seconds by stage, start included."""
        return {stage["name"]: stage["wall_seconds"] for stage in self.summary["stages"]}

    def seconds_of_a_step(self, stage: str | None = None) -> float:
        """Mean over the steps of a stage, or of a run that has one, without its start."""
        first, *_, last = self.rows(stage)
        return float((last["time"] - first["time"]) / (last["step"] - first["step"]))

    def rows(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Rows of metrics, of all stages or of one."""
        lines = (self.where / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [row for row in map(json.loads, lines) if stage in (None, row["stage"])]


def train(
    configs: Path | Sequence[Path], words: Sequence[str], seconds: float = SECONDS
) -> TrainedRun:
    """The run of configurations with settings laid over them, trained where that is not done.

    Raises CalledProcessError where training ends with an error, TimeoutExpired after `seconds`.
    """
    files = [configs] if isinstance(configs, Path) else list(configs)
    command = [sys.executable, "-m", "deploy", "train", *map(str, files), *words]
    subprocess.run(command, cwd=ROOT, check=True, timeout=seconds)
    run = load_run(files, list(words))
    return TrainedRun(Path(run.runs) / run.name)
