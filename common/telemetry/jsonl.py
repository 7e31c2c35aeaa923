"""The rows of RUN/metrics.jsonl: no step stands twice, and each row is durable before the next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from common.failures import InputError
from common.storage.run_directory import RunDirectory

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends rows to RUN/metrics.jsonl, each durable before the next begins."""

    def __init__(self, run: RunDirectory, resumed_step: int | None = None):
        """Continue the file of a run resumed at a step: rows past it, and a torn last line, are
        removed; None begins anew."""
        self.run = run
        kept = (
            []
            if resumed_step is None
            else [row for row in read_rows(run) if row["step"] <= resumed_step]
        )
        self.last_step: int = kept[-1]["step"] if kept else -1
        """Step of the newest row, -1 where there is none."""
        self._write_anew(kept)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append what `Metrics.flush` gave. Steps count over the whole run and only grow."""
        if row["step"] <= self.last_step:
            raise ValueError(f"metrics of step {row['step']} after those of step {self.last_step}")
        self.run.append_line(METRICS_FILE, _line(row))
        self.last_step = row["step"]

    def add(self, row: Mapping[str, Any]) -> None:
        """Lay what `Metrics.flush` gave over the newest row where that is of the same step, so that
        no step has two; else append it."""
        rows = read_rows(self.run)
        if rows and rows[-1]["step"] == row["step"]:
            self._write_anew(
                [*rows[:-1], {**rows[-1], **row, "time": rows[-1].get("time", row["time"])}]
            )
        else:
            self.write(row)

    def _write_anew(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.run.write_text(METRICS_FILE, "".join(_line(row) + "\n" for row in rows))


def read_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """Rows of RUN/metrics.jsonl; a last line torn by a crash is left out, a broken one before it is
    an InputError."""
    if not run.exists(METRICS_FILE):
        return []
    lines = run.filesystem.cat_file(run.inner(METRICS_FILE)).removesuffix(b"\n").split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_row(line))
        except ValueError as broken:
            if number == len(lines):
                break
            raise InputError(
                f"{run.path(METRICS_FILE)}:{number}",
                f"is not JSON of a row ({broken}); remove or mend the line",
            ) from broken
    return rows


class RowFollower:
    """Rows of RUN/metrics.jsonl as they come, for those who look at a run: each is read once, and
    damage is counted rather than raised."""

    def __init__(self, run: RunDirectory):
        self._run = run
        self._begin()

    def _begin(self) -> None:
        self._at, self._last, self._lines = 0, b"", 0
        """Bytes that were read, the last whole line of them, and how many lines."""
        self.broken: list[int] = []
        """Numbers of lines that hold no row."""

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """New rows, and whether all before them are void: a driver that resumes, or corrects its
        newest row, writes the whole file again."""
        if not self._run.exists(METRICS_FILE):
            anew = self._at > 0
            self._begin()
            return [], anew
        before = self._at - len(self._last)
        new = self._bytes(before)
        anew = not new.startswith(self._last)
        if anew:
            self._begin()
            new = self._bytes(0)
        new = new[len(self._last) :]
        # A line without its end is yet to be written to it.
        whole = new[: new.rfind(b"\n") + 1].splitlines(keepends=True)
        rows = []
        for line in whole:
            self._lines += 1
            try:
                rows.append(_row(line))
            except ValueError:
                self.broken.append(self._lines)
        if whole:
            self._at, self._last = self._at + sum(map(len, whole)), whole[-1]
        return rows, anew

    def _bytes(self, start: int) -> bytes:
        with self._run.filesystem.open(self._run.inner(METRICS_FILE), "rb") as file:
            file.seek(start)
            return bytes(file.read())


def _row(line: bytes) -> dict[str, Any]:
    """Raises ValueError for a line that holds no row."""
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError("no row of metrics, which is a mapping with a step")
    return row


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False)
