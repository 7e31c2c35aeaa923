"""A run directory as readers of the page see it: live, finished, half-written, damaged, old, empty.

Reads files only, each byte of a growing file once, and writes nothing. What is missing or damaged
is said in `problems` instead of raised.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from yaml import YAMLError

from common.config.run import Run
from common.failures import EngramError, InputError
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import METRICS_FILE, RowFollower
from common.telemetry.series import parse_key
from deploy.view.episode_index import EpisodeIndex
from learner.summary import SUMMARY, last_status, read_summary, run_status

MOST_PROBLEMS = 20
"""Sentences of each kind that are shown."""


Column = tuple[list[int], list[float]]
"""Steps and values of one key."""
NO_METRICS = ("step", "stage", "time")


class WatchedRun:
    """One run that is looked at. Several threads may ask at once."""

    def __init__(self, directory: RunDirectory, label: str, over: bool = False):
        """label: its name, told apart from those of other runs on the page. over: its driver is
        known to write no more, though it may hold the run's lease yet."""
        self.directory, self.label, self._over = directory, label, over
        self.rows: list[dict[str, Any]] = []
        self.columns: dict[str, Column] = {}
        """Steps and values by key of a row, for curves."""
        self.generation = 0
        """Grows when rows or episodes were added or replaced."""
        self.episodes = EpisodeIndex(directory)
        self._follower = RowFollower(directory)
        self._lock = threading.Lock()
        self._unreadable: str | None = None
        self._config: tuple[str, Run | None, str | None] = ("", None, "config.yaml is not there")

    def refresh(self) -> int:
        """Read what is new; returns `generation`."""
        with self._lock:
            try:
                rows, anew = self._follower.read()
                self._unreadable = None
            except OSError as failure:
                rows, anew = [], False
                self._unreadable = f"metrics.jsonl cannot be read: {failure}"
            if anew:
                self.rows, self.columns = [], {}
            self.rows += rows
            for row in rows:
                _spread(row, self.columns)
            changed = self.episodes.refresh()
            if rows or anew or changed:
                self.generation += 1
            return self.generation

    # --- files of the run -------------------------------------------------------------------------

    def config(self) -> tuple[Run | None, str, str | None]:
        """The run's settings, config.yaml as it stands, and what is wrong with it."""
        text, wrong = self._text("config.yaml")
        if wrong is not None:
            return None, text, wrong
        if text != self._config[0]:
            try:
                self._config = text, self.directory.run(), None
            except (EngramError, YAMLError, OSError) as failure:
                self._config = text, None, str(failure)
        return self._config[1], text, self._config[2]

    def summary(self) -> tuple[dict[str, Any], str | None]:
        """summary.json, and what is wrong with it."""
        return self._read(lambda: read_summary(self.directory), SUMMARY)

    def environment(self) -> tuple[dict[str, Any], str | None]:
        return self._json("environment.json")

    def status(self) -> str:
        """As `run_status` says, or "unknown" where summary.json is damaged."""
        try:
            return last_status(self.directory) if self._over else run_status(self.directory)
        except (EngramError, OSError):
            return "unknown"

    def problems(self) -> list[str]:
        """Sentences on files that are missing or damaged."""
        found = [self.config()[2], self.summary()[1], self.environment()[1], self._unreadable]
        if not self.directory.exists(METRICS_FILE):
            found.append("metrics.jsonl is not there yet: no step was logged")
        if self._follower.broken:
            lines = ", ".join(map(str, self._follower.broken[:MOST_PROBLEMS]))
            found.append(f"metrics.jsonl: no row of metrics can be read from line {lines}")
        if not self.directory.names("episodes"):
            found.append("no episodes are recorded yet: memory reinforcement learning records them")
        found += self.episodes.problems[:MOST_PROBLEMS]
        return [sentence for sentence in found if sentence]

    def _json(self, name: str) -> tuple[dict[str, Any], str | None]:
        def read() -> dict[str, Any]:
            value = json.loads(self.directory.read_text(name))
            if not isinstance(value, dict):
                raise ValueError("is no JSON object")
            return value

        return self._read(read, name)

    def _read(
        self, read: Callable[[], dict[str, Any]], name: str
    ) -> tuple[dict[str, Any], str | None]:
        try:
            return read(), None
        except FileNotFoundError:
            return {}, f"{name} is not there"
        except (InputError, ValueError, OSError) as failure:
            return {}, f"{name}: {failure}"

    def _text(self, name: str) -> tuple[str, str | None]:
        """A file's text, damaged characters replaced, and what is wrong with it."""
        try:
            data = self.directory.filesystem.cat_file(self.directory.inner(name))
        except FileNotFoundError:
            return "", f"{name} is not there"
        except OSError as failure:
            return "", f"{name} cannot be read: {failure}"
        return data.decode(errors="replace"), None


def watched(directories: list[str]) -> list[WatchedRun]:
    """The runs that a user named by their folders, each with a label of its own.

    Raises InputError for one that is no folder, and for one that is named twice.
    """
    found: list[WatchedRun] = []
    for where in directories:
        root, slash, name = where.rstrip("/").rpartition("/")
        run = RunDirectory(root + slash or ".", name)
        if not run.exists():
            raise InputError(where, "is no folder, so it is no run")
        if not any(run.exists(name) for name in ("config.yaml", METRICS_FILE, SUMMARY, "episodes")):
            raise InputError(
                where,
                "is not a run directory: it has no config.yaml, metrics.jsonl, summary.json or "
                "episodes",
            )
        if any(other.directory.path() == run.path() for other in found):
            raise InputError(where, "is named twice")
        same = sum(other.directory.name == run.name for other in found)
        found.append(WatchedRun(run, run.name if not same else f"{run.name} ({same + 1})"))
    return found


def _spread(row: dict[str, Any], columns: dict[str, Column]) -> None:
    """Add a row's figures to their columns; what is no figure of a metric is left out."""
    for key, value in row.items():
        if key in NO_METRICS or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if key not in columns:
            try:
                parse_key(key)
            except ValueError:
                continue
            columns[key] = [], []
        steps, values = columns[key]
        steps.append(row["step"])
        values.append(value)
