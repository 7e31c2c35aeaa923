"""One driver per run: the driver holds the lease in the run's folder, and a second one is refused.

On one host the lease is free as soon as its process is gone. Of a process on another host only
the heartbeat can be seen: unchanged for half a minute of the watcher's own clock, its driver
counts as dead. Clocks of two hosts are never compared.

A driver that was taken for dead and lives (its machine was suspended) finds, the next time that
it or one of its actors writes, that the lease is another's, and ends with `LeaseLost`.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from common.failures import InputError, LeaseLost
from common.storage.lease_records import (
    FOLDER,
    LeaseTerm,
    Record,
    create,
    newest,
    remove_before,
    write,
)
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import Progress

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""A heartbeat that stood still for so long is a dead driver's."""
WATCH_SECONDS = 1.0
WRITERS_SECONDS = 60.0
"""How long the actors of a killed driver may take to end. Ray ends them within a few seconds."""
WRITERS = f"{FOLDER}/writers"
_UNLOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def hold(
    directory: RunDirectory, progress: Progress, take_over: bool = False
) -> Iterator[RunDirectory]:
    """The run's directory for its one driver: what is written through it, here or by an actor that
    it was sent to, is written while the lease lasts, or not at all.

    take_over: the user knows that a driver on another host is dead; its heartbeat is not watched.
    Raises InputError where another driver holds the run, or actors of the last one do not end.
    """
    record = take(directory, progress, take_over)
    heartbeat = Heartbeat(directory, record)
    try:
        wait_for_writers(directory, progress)
        yield replace(directory, term=heartbeat.term)
    finally:
        heartbeat.close()


def take(directory: RunDirectory, progress: Progress, take_over: bool) -> Record:
    """Take the lease, or raise InputError saying who has it."""
    owner = uuid.uuid4().hex
    watched: Record | None = None
    since = 0.0
    while True:
        # Before the look: a watcher that is stopped in between must not count that time.
        now = time.monotonic()
        held = newest(directory)
        if held is not None and not held.released and not is_free(held, directory, take_over):
            if watched is None:
                watched, since = held, time.monotonic()
                progress.note(
                    f"run {directory.name} was driven from {described(held)}, last heartbeat "
                    f"{age(held):.0f} s ago; waiting until it is stale ({STALE_SECONDS:.0f} s "
                    "without another)"
                )
            if held != watched:
                raise InputError(
                    directory.path(),
                    f"is being driven from {described(held)}, whose heartbeat goes on; wait for "
                    "its end, or stop it there",
                )
            if now - since < STALE_SECONDS:
                time.sleep(WATCH_SECONDS)
                continue
        if held is not None and not held.released:
            progress.note(
                f"taking run {directory.name} over from {described(held)}, which ended without "
                "giving it back"
            )
        record = Record.own(held.number + 1 if held is not None else 1, owner)
        if _create(directory, record):
            remove_before(directory, record)
            return record
        watched = None  # another one was faster; it is judged like any other holder


def is_free(held: Record, directory: RunDirectory, take_over: bool) -> bool:
    """Whether the lease can be had at once. InputError where its process is seen to live."""
    lives = held.process.lives()
    if lives:
        pid, hint = held.process.pid, ". --take-over is for drivers on other hosts"
        raise InputError(
            directory.path(),
            f"is being driven by process {pid} on this host; wait for its end, or stop it (kill "
            f"{pid}){hint if take_over else ''}",
        )
    return lives is False or take_over


def is_alive(held: Record | None) -> bool:
    """Whether a run has a driver now, for reports: of one on another host by the clocks of both."""
    if held is None or held.released:
        return False
    lives = held.process.lives()
    return age(held) < STALE_SECONDS if lives is None else lives


def age(held: Record) -> float:
    """Seconds since the last heartbeat, by the clocks of both hosts."""
    return max(0.0, time.time() - held.beat_at)


def described(held: Record) -> str:
    return f"{held.process.host_name} (process {held.process.pid})"


def _create(directory: RunDirectory, record: Record) -> bool:
    try:
        return create(directory, record)
    except OSError as unwritable:
        raise InputError(directory.path(), f"cannot be written to: {unwritable}") from unwritable


class Heartbeat:
    """A thread that says every few seconds that the driver lives, until `close` gives the lease
    back."""

    def __init__(self, directory: RunDirectory, record: Record):
        self.directory, self.record = directory, record
        self.term = LeaseTerm(record.number, record.owner)
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"lease-{directory.name}", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join(BEAT_SECONDS)
        with suppress(LeaseLost):
            self._write(replace(self.record, released=True))

    def _run(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._write(self.record.beaten())
            except LeaseLost as lost:
                log.error("%s", lost)
                return

    def _write(self, record: Record) -> None:
        try:
            self.term.require(self.directory)
            write(self.directory, record)
            self.record = record
        except LeaseLost:
            raise
        except Exception as away:  # noqa: BLE001 - a store may raise anything, and be back next time
            log.warning("the heartbeat of %s could not be written: %s", self.directory.path(), away)


# --- processes that write for the driver ----------------------------------------------------------

_registered: dict[str, int] = {}
"""Locked files of this process, by path; the kernel unlocks them when it ends, however it ends."""


def register_writer(directory: RunDirectory) -> None:
    """Called by every actor that writes into a run: until its process is gone, no other driver
    begins there."""
    if directory.local is None or directory.term is None:
        return
    path = directory.local / WRITERS
    if str(path) not in _registered:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise LeaseLost(f"{directory.path()} is being taken over by another driver") from None
        except OSError as unable:
            if unable.errno not in _UNLOCKABLE:
                raise
        _registered[str(path)] = descriptor
    directory.require_lease()


def wait_for_writers(directory: RunDirectory, progress: Progress) -> None:
    """Wait until every process that wrote for an earlier driver is gone.

    Ray takes seconds to end those of one that was killed. They could not begin to write any more,
    but might be in the midst of it.
    """
    if directory.local is None:
        return
    path = directory.local / WRITERS
    path.touch()
    deadline, told = time.monotonic() + WRITERS_SECONDS, False
    with path.open("r+b") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pass
            except OSError as unable:
                if unable.errno in _UNLOCKABLE:
                    return
                raise
            ids = ", ".join(writers(path)) or "on another host"
            who = f"processes of the last driver of run {directory.name} to end ({ids})"
            if not told:
                told = True
                progress.note(f"waiting for {who}")
            if time.monotonic() > deadline:
                raise InputError(
                    directory.path(),
                    f"waited {WRITERS_SECONDS:.0f} s in vain for {who}; end them (kill), then "
                    "start again",
                )
            time.sleep(0.1)


def writers(path: Path) -> list[str]:
    """Ids of the processes on this host that hold the lock."""
    status = path.stat()
    inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    locks = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return sorted({fields[4] for fields in locks if fields[1] == "FLOCK" and fields[5] == inode})
