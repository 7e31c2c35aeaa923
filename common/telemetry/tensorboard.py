"""Rows of metrics as TensorBoard's event files, in RUN/tensorboard.

Written by the `tensorboard` package, which brings no torch into the process, as torch's and
tensorboardX's writers do. A driver begins a file of its own. Where a run goes back to an earlier
step, the file says so, and TensorBoard drops what was past it.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config.run import Run
from common.storage.run_directory import RunDirectory
from common.telemetry.series import parse_key

FOLDER = "tensorboard"
NO_FIGURES = ("step", "stage", "time")
UPLOAD_SECONDS = 60.0
"""Between copies to a remote store, where a file cannot grow."""


class TensorBoard:
    """step: that the run goes on from; None: it begins."""

    def __init__(self, run: Run, directory: RunDirectory, step: int | None):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._directory = directory
        self._spool = None if directory.local else Path(tempfile.mkdtemp(prefix="engram-events-"))
        folder = self._spool or directory.path(FOLDER)
        self._writer = EventFileWriter(str(folder), flush_secs=10)
        self._uploaded = time.monotonic()
        if step is not None:
            self.rewind(step)

    def write(self, row: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=tag_of(key), simple_value=value)
            for key, value in row.items()
            if key not in NO_FIGURES and isinstance(value, int | float)
        ]
        summary = Summary(value=values)
        self._writer.add_event(Event(wall_time=row["time"], step=row["step"], summary=summary))
        if self._spool is not None and time.monotonic() - self._uploaded > UPLOAD_SECONDS:
            self._writer.flush()
            self._upload()

    def rewind(self, step: int) -> None:
        """Declare void all that was written past `step`."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def close(self) -> None:
        self._writer.close()
        if self._spool is not None:
            self._upload()
            shutil.rmtree(self._spool, ignore_errors=True)

    def _upload(self) -> None:
        assert self._spool is not None
        self._uploaded = time.monotonic()
        self._directory.require_lease()
        files = self._directory.filesystem
        files.makedirs(self._directory.inner(FOLDER), exist_ok=True)
        for path in self._spool.iterdir():
            files.put_file(str(path), self._directory.inner(f"{FOLDER}/{path.name}"))


def tag_of(key: str) -> str:
    """`reward/component{component=bleu}` as reward/component/bleu: TensorBoard groups by what
    stands before the first slash, and knows no labels."""
    name, labels, statistic = parse_key(key)
    return "/".join([name, *labels.values(), *([statistic] if statistic else [])])
