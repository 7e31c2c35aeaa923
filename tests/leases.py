"""Leases of a run for tests: held in other processes, and on other hosts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.storage.lease_records import Record, create
from common.storage.process_identity import ProcessIdentity
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import QuietProgress

ROOT = Path(__file__).resolve().parent.parent

ELSEWHERE = ProcessIdentity("another boot pid:[7]", "gpu-7", 4242, "99")


class Noted(QuietProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@contextmanager
def started(script: str, *words: str, says: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has said its first line."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == says
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def elsewhere(directory: RunDirectory, **fields: Any) -> Record:
    """The lease as a driver on another host holds it."""
    record = replace(Record(1, "theirs", ELSEWHERE, beat=3, beat_at=time.time() - 4), **fields)
    assert create(directory, record)
    return record
