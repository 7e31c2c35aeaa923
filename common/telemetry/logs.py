"""Log lines of the driver and of actors: one line per record, saying when, how bad, which run, and
who.

`2026-01-31T12:00:00.000Z INFO demo rollout[1] took weights version 7`

Lines go to stderr, and, where the run directory is on this machine, to RUN/logs/{role}-{rank}.log,
so that what a dead actor said is still there. A record with line breaks or a traceback stays one
line: otherwise lines of several processes mix.
"""

from __future__ import annotations

import logging
import sys
import time

from common.storage.run_directory import RunDirectory

PACKAGES = ("common", "rollout", "reward_service", "learner", "deploy", "benchmarks", "__main__")
"""Logged from INFO on; libraries only from WARNING."""


class _OneLine(logging.Formatter):
    def __init__(self, role: str, rank: int, run: str):
        super().__init__("%(message)s")
        self._who = f"{run} {role}[{rank}]"

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = super().format(record).replace("\r", "").replace("\n", "\\n")
        return f"{moment}.{int(record.msecs):03d}Z {record.levelname} {self._who} {text}"


def setup_logging(role: str, rank: int, run: RunDirectory) -> None:
    """Send this process's log records to stderr and to the run's log file. Called again, it
    replaces what it set up before."""
    formatter = _OneLine(role, rank, run.name)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if run.local is not None:
        folder = run.local / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(folder / f"{role}-{rank}.log", encoding="utf-8"))
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler.formatter, _OneLine)]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    logging.captureWarnings(True)
