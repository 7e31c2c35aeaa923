"""Log records of the driver and of actors, each saying when, how bad, which run, and who.

`2026-01-31T12:00:00.000Z INFO demo rollout-worker-1: took weights version 7`

Records go to stderr, and, where the run directory is on this machine, to RUN/logs/{role}.log, so
that what a dead actor said is still there. A record's further lines, such as a traceback, follow as
they are; each record is written at once, so that those of several processes do not mix.
"""

from __future__ import annotations

import logging
import sys
import time

from common.storage.run_directory import RunDirectory

PACKAGES = ("common", "rollout", "reward_service", "learner", "deploy", "benchmarks", "__main__")
"""Logged from INFO on; libraries only from WARNING."""


class _Formatter(logging.Formatter):
    def __init__(self, role: str, run: str):
        super().__init__("%(message)s")
        self._who = f"{run} {role}"

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = super().format(record).replace("\r", "")
        return f"{moment}.{int(record.msecs):03d}Z {record.levelname} {self._who}: {text}"


def setup_logging(role: str, run: RunDirectory) -> None:
    """Send this process's log records to stderr and to the run's log file. Called again, it
    replaces what it set up before.

    role: of the process in the run, with its number where there are several: `driver`,
    `learner-rank-0`.
    """
    formatter = _Formatter(role, run.name)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if run.local is not None:
        folder = run.local / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(folder / f"{role}.log", encoding="utf-8"))
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler.formatter, _Formatter)]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    logging.captureWarnings(True)


def keep_traceback(failure: BaseException) -> str | None:
    """Write a failure with its traceback to this process's log file; returns the file, or None
    where the process has none."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and isinstance(handler.formatter, _Formatter):
            trace = (type(failure), failure, failure.__traceback__)
            handler.handle(
                logging.LogRecord(__name__, logging.ERROR, __file__, 0, "failed", (), trace)
            )
            return handler.baseFilename
    return None
