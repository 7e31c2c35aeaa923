"""The files of a run's lease, and the steps that decide who holds it: create the next, read the
newest.

    RUN/lease/00000007.json   who drives the run, with a heartbeat; the highest number counts
    RUN/lease/writers         locked, on local disks, by each process that writes for the driver

To take the lease is to create the file after the newest one. That has one winner, however many
try at the same moment, and nobody who judged an older holder can end a newer one. The newest file
is never removed, not even when its driver is done (it is marked as released): numbers only grow.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common.failures import InfraFailure, LeaseLost
from common.storage.process_identity import ProcessIdentity
from common.storage.run_directory import RunDirectory

log = logging.getLogger(__name__)

FOLDER = "lease"
READ_BACK_SECONDS = 5.0
"""Where a store cannot create exclusively, the last of several who write the same file within this
time wins."""
LOOK_AGAIN_SECONDS = (0.5, 1.0, 2.0, 4.0)
"""Pauses before a driver that cannot read its lease tries again; well below the time after which
others take its heartbeat for dead."""
_READS = 100
_FILE = re.compile(r"(?P<unfinished>\.?)(?P<number>\d{8,})\.json")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True, slots=True)
class Record:
    """The contents of one of the files."""

    number: int
    owner: str
    """Drawn anew by every driver."""
    process: ProcessIdentity
    beat: int = 0
    """Counts heartbeats; that it goes on is the sign of life that other hosts see."""
    beat_at: float = 0.0
    """Unix time of the last heartbeat by its driver's clock: for readers, it decides nothing."""
    released: bool = False

    @classmethod
    def own(cls, number: int, owner: str) -> Record:
        return cls(number, owner, ProcessIdentity.own(), beat_at=time.time())

    def beaten(self) -> Record:
        return replace(self, beat=self.beat + 1, beat_at=time.time())


def file_name(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"


def newest(directory: RunDirectory) -> Record | None:
    """The record that counts; None where the run was never driven.

    A file that cannot be read (its writer died, where there are no links) is a record of an unknown
    process.
    """
    for _ in range(_READS):
        numbers = [number for number, unfinished in _files(directory).values() if not unfinished]
        if not numbers:
            return None
        try:
            return _parsed(max(numbers), directory.read_text(file_name(max(numbers))))
        except FileNotFoundError:
            time.sleep(0.05)  # removed since the folder was read, so there is a newer one
    raise InfraFailure(f"{directory.path(FOLDER)} lists files that are not there")


def create(directory: RunDirectory, record: Record) -> bool:
    """Whether this process is the one that created the file of `record`, and it is the newest."""
    name, text = file_name(record.number), _text(record)
    if directory.local is not None:
        return _create_local(directory.local / name, text.encode()) and newest(directory) == record
    if directory.exists(name):
        return False
    directory.write_text(name, text)
    time.sleep(READ_BACK_SECONDS)
    return newest(directory) == record


def write(directory: RunDirectory, record: Record) -> None:
    """Replace the record's own file. Not synced: after a power failure nobody asks for it."""
    if directory.local is None:
        directory.write_text(file_name(record.number), _text(record))
        return
    target = directory.local / file_name(record.number)
    scratch = target.with_name(f".{target.name}")
    scratch.write_text(_text(record), encoding="utf-8")
    scratch.replace(target)


def remove_before(directory: RunDirectory, record: Record) -> None:
    """Tidy up: files that do not count any more."""
    for name, (number, _) in _files(directory).items():
        if number < record.number:
            with suppress(FileNotFoundError):
                directory.remove(f"{FOLDER}/{name}")


def _files(directory: RunDirectory) -> dict[str, tuple[int, bool]]:
    """Number of each record's file, and whether it is one that `write` has not finished."""
    found = {name: _FILE.fullmatch(name) for name in directory.names(FOLDER)}
    return {
        name: (int(match["number"]), bool(match["unfinished"]))
        for name, match in found.items()
        if match
    }


@dataclass(frozen=True, slots=True)
class LeaseTerm:
    """The time for which one driver holds the lease.

    A plain value that travels in a `RunDirectory` to whoever writes for that driver, so that a
    driver which was taken for dead cannot write into the run of its successor.
    """

    number: int
    owner: str

    def require(self, directory: RunDirectory) -> None:
        held = _newest_of_store(directory)
        if held is None:
            raise LeaseLost(f"{directory.path()} is no longer this driver's: its lease was removed")
        if (held.number, held.owner) != (self.number, self.owner):
            by = f"process {held.process.pid} on {held.process.host_name}"
            raise LeaseLost(
                f"{directory.path()} is no longer this driver's: its lease was taken over by {by}"
            )


def _newest_of_store(directory: RunDirectory) -> Record | None:
    """`newest`, asked for a few times: that a store is away for a moment must not end a run."""
    for seconds in LOOK_AGAIN_SECONDS:
        try:
            return newest(directory)
        except Exception as away:  # noqa: BLE001 - a store may raise anything
            log.warning(
                "the lease of %s cannot be read; trying again in %.1f s: %s",
                directory.path(),
                seconds,
                away,
            )
            time.sleep(seconds)
    return newest(directory)


def _text(record: Record) -> str:
    return json.dumps(asdict(record), ensure_ascii=False) + "\n"


def _parsed(number: int, text: str) -> Record:
    try:
        fields: dict[str, Any] = json.loads(text)
        return Record(**(fields | {"process": ProcessIdentity(**fields["process"])}))
    except (ValueError, TypeError, KeyError):
        # Its text for an owner: a change is seen.
        return Record(number, text, ProcessIdentity("", "an unknown host", 0, ""))


def _create_local(target: Path, content: bytes) -> bool:
    """Create `target` with all of its content, or find that it is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{uuid.uuid4().hex}")
    try:
        scratch.write_bytes(content)
        os.link(scratch, target)
        return True
    except FileExistsError:
        # NFS may ask twice and be told that its own link is there.
        return scratch.stat().st_nlink == 2
    except OSError as unable:
        if unable.errno not in _NO_LINKS:
            raise
        return _create_by_flag(target, content)
    finally:
        scratch.unlink(missing_ok=True)


def _create_by_flag(target: Path, content: bytes) -> bool:
    """The same where there are no links; a writer that dies here leaves an empty file."""
    try:
        with target.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True
