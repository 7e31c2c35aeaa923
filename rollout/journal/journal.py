"""The durable record of a run's tasks and episodes: nothing that arrived is lost when the process
dies the next moment.

    RUN/episodes/_status.log        dealt, scored, failed, dropped, trained@version, rolled back
    RUN/episodes/_open-00000007.log episodes since the last seal, as they arrived
    RUN/episodes/part-00000006.parquet   sealed episodes (readers skip names that begin with "_")

Parquet cannot be appended to, so episodes arrive in an append-only segment of records (length,
CRC-32, Arrow IPC stream), each on disk before `arrived` returns, and are sealed into Parquet at
checkpoints. An episode is written before the status that says so: a crash between the two leaves an
episode that nobody claims, never a claim without its episode. At open, a torn last record is cut
off; damage anywhere else is a failure. A single process writes.

Object stores cannot append either. A run that lies behind a URI keeps its open segment on the
conductor's own disk and copies the sealed file and the status log up at every seal, that is at
every checkpoint; what a lost machine takes with it then is what the resume would have dropped.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from common.episode import Episode
from common.episode_arrow import SCHEMA, require_episodes, to_table
from common.failures import DataFailure, InputError
from common.storage.lease import register_writer
from common.storage.run_directory import RunDirectory, sync
from rollout.journal.ledger import Counts, Ledger, Moment, moment

_HEADER = struct.Struct("<4sII")
_MAGIC = b"EGE1"

DEAL = ("stage", "attempt")
SEALED = pa.schema([*SCHEMA, *((name, pa.int64()) for name in DEAL)], SCHEMA.metadata)
"""Schema of the Parquet files. stage: index in the run; attempt: how often the iteration was dealt
before, the highest is the one that counts."""


def open_journal(run: RunDirectory, stage: int) -> Journal:
    """The journal of a run, local or behind a URI."""
    register_writer(run)
    if run.local is not None:
        return Journal(run.local, stage, may_write=run.require_lease)
    spool = Path(tempfile.mkdtemp(prefix="engram-journal-"))
    (spool / "episodes").mkdir()
    if run.exists("episodes/_status.log"):
        run.filesystem.get_file(
            run.inner("episodes/_status.log"), str(spool / "episodes" / "_status.log")
        )
    return Journal(spool, stage, mirror=run)


class Journal:
    """Single writer of RUN/episodes. Methods block for a disk write: call them off the event loop.

    stage: index in the run of the stage that writes; iterations count within it.
    seal_above: bytes of an open segment at which it is sealed without being asked. mirror: where to
    copy what is sealed.
    may_write: called before each write into the run; raises LeaseLost where it is another driver's
    by now.
    """

    def __init__(
        self,
        run_directory: Path,
        stage: int = 0,
        seal_above: int = 64 * 2**20,
        mirror: RunDirectory | None = None,
        may_write: Callable[[], None] = lambda: None,
    ):
        self._may_write = may_write
        self.folder = run_directory / "episodes"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stage, self._mirror = stage, mirror
        self.books = Ledger()
        self._seal_above = seal_above
        self._attempts: dict[Moment, int] = {}
        self.torn_bytes = 0
        """Bytes of unfinished records that were cut off at open."""
        self._status = self._open_status()
        self._part, self._segment = self._open_segment()

    @property
    def counts(self) -> Counts:
        return self.books.counts

    # --- events -----------------------------------------------------------------------------------

    def dealt(self, iteration: int, tasks: Sequence[str]) -> None:
        attempt = self._attempts.get((self._stage, iteration), -1) + 1
        self._enter("dealt", iteration, tasks=list(tasks), attempt=attempt)

    def arrived(self, iteration: int, episodes: Sequence[Episode]) -> None:
        """Scored episodes, durable when this returns."""
        if not episodes:
            return
        self.books.expect([episode.task for episode in episodes])
        self._may_write()
        table = to_table([replace(episode, final_memory=None) for episode in episodes])
        deal = (self._stage, self._attempts[self._stage, iteration])
        for name, value in zip(DEAL, deal, strict=True):
            table = table.append_column(
                SEALED.field(name), pa.array([value] * len(episodes), pa.int64())
            )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SEALED) as writer:
            writer.write_table(table)
        payload = sink.getvalue().to_pybytes()
        _append(self._segment, _HEADER.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload)
        self._enter("scored", iteration, tasks=[episode.task for episode in episodes])

    def failed(self, iteration: int, tasks: Sequence[str], reason: str) -> None:
        if tasks:
            self._enter("failed", iteration, tasks=list(tasks), reason=reason)

    def dropped(self, iteration: int, tasks: Sequence[str], reason: str) -> None:
        if tasks:
            self._enter("dropped", iteration, tasks=list(tasks), reason=reason)

    def give_up(self, iteration: int, reason: str) -> int:
        """Drop whatever of `iteration` is still in flight; returns how many."""
        tasks = self.books.in_flight((self._stage, iteration))
        self.dropped(iteration, tasks, reason)
        return len(tasks)

    def trained(self, iteration: int, version: int) -> int:
        """The scored tasks of `iteration` were trained on, and gave weights `version`; returns how
        many."""
        tasks = self.books.scored((self._stage, iteration))
        self._enter("trained", iteration, tasks=tasks, version=version)
        if self._segment.tell() > self._seal_above:
            self.seal()
        return len(tasks)

    def roll_back(self, step: int) -> None:
        """The run goes on from the checkpoint after `step` iterations: later ones, and all in
        flight, are dropped."""
        if self.counts.in_flight or any(
            other >= (self._stage, step) for other in self.books.trained
        ):
            self._enter("rolled_back", step, reason=f"rolled back to step {step}")

    # --- files ------------------------------------------------------------------------------------

    def seal(self) -> Path | None:
        """Turn the open segment into a Parquet file; None where it holds nothing."""
        self._may_write()
        path = self._segment_path(self._part)
        tables = [pa.ipc.open_stream(payload).read_all() for payload, _ in records(path)]
        if not tables:
            return None
        part = self._part_path(self._part)
        scratch = part.with_name(f"_{part.name}")
        pq.write_table(pa.concat_tables(tables, promote_options="default"), scratch)
        sync(scratch)
        scratch.rename(part)
        sync(self.folder)
        if self._mirror is not None:
            self._copy_up(part)
            self._copy_up(self.folder / "_status.log")
        self._segment.close()
        path.unlink()
        self._part += 1
        self._segment = self._segment_path(self._part).open("ab")
        sync(self.folder)
        return part

    def close(self) -> None:
        self.seal()
        self._segment.close()
        self._status.close()

    def _enter(self, event: str, iteration: int, **more: Any) -> None:
        entry = {"event": event, "stage": self._stage, "iteration": iteration, **more}
        self._may_write()
        self._apply(entry)
        _append(self._status, _status_line(entry))

    def _apply(self, entry: dict[str, Any]) -> None:
        self.books.apply(entry)
        if entry["event"] == "dealt":
            self._attempts[moment(entry)] = entry["attempt"]

    def _open_status(self) -> BinaryIO:
        path = self.folder / "_status.log"
        path.touch()
        good = 0
        for entry, end in _status_entries(path):
            self._apply(entry)
            good = end
        self._cut(path, good)
        return path.open("ab")

    def _open_segment(self) -> tuple[int, BinaryIO]:
        names = [path.name for path in self.folder.iterdir()] + (
            self._mirror.names("episodes") if self._mirror is not None else []
        )
        sealed = [
            int(Path(name).stem.removeprefix("part-")) for name in names if name.startswith("part-")
        ]
        part = max(sealed, default=-1) + 1
        for path in self.folder.glob("_open-*.log"):
            # Died between the rename of the sealed file and the end of its segment: the episodes
            # lie in the sealed file.
            if path != self._segment_path(part):
                path.unlink()
        path = self._segment_path(part)
        path.touch()
        self._cut(path, max((end for _, end in records(path)), default=0))
        sync(self.folder)
        return part, path.open("ab")

    def _cut(self, path: Path, good: int) -> None:
        torn = path.stat().st_size - good
        if torn:
            with path.open("r+b") as file:
                file.truncate(good)
                os.fsync(file.fileno())
        self.torn_bytes += torn

    def _copy_up(self, path: Path) -> None:
        assert self._mirror is not None
        self._mirror.require_lease()
        self._mirror.filesystem.makedirs(self._mirror.inner("episodes"), exist_ok=True)
        self._mirror.filesystem.put_file(str(path), self._mirror.inner(f"episodes/{path.name}"))

    def _segment_path(self, part: int) -> Path:
        return self.folder / f"_open-{part:08d}.log"

    def _part_path(self, part: int) -> Path:
        return self.folder / f"part-{part:08d}.parquet"


def require_whole(run_directory: Path) -> None:
    """Raises InputError where a file of RUN/episodes that a resume reads is damaged, other than by
    a crash at its end, or where episodes are of another format than those to come."""
    folder = run_directory / "episodes"
    for path in [folder / "_status.log", *sorted(folder.glob("_open-*.log"))]:
        try:
            if path.is_file():
                for _ in (_status_entries if path.name == "_status.log" else records)(path):
                    pass
        except DataFailure as damage:
            raise InputError(
                str(path),
                f"{str(damage).removeprefix(f'{path}: ')}; put it back, or move {folder} away: "
                "recording then begins anew",
            ) from damage
    for path in folder.glob("_open-*.log"):
        for payload, _ in records(path):
            require_episodes(pa.ipc.open_stream(payload).schema, str(path))
    for path in folder.glob("part-*.parquet"):
        with suppress(pa.ArrowInvalid):  # damage that a resume does not meet
            require_episodes(pq.read_schema(path), str(path))


def outcomes(run_directory: Path) -> pa.Table:
    """Outcome of every deal so far: task, stage, iteration, attempt, status, reason, version. For
    reports, also in a running run."""
    rows: list[dict[str, Any]] = []
    latest: dict[str, dict[str, Any]] = {}
    for entry, _ in _status_entries(run_directory / "episodes" / "_status.log"):
        event = entry["event"]
        if event == "dealt":
            for task in entry["tasks"]:
                latest[task] = {
                    "task": task,
                    "status": "dealt",
                    **{name: entry[name] for name in ("stage", "iteration", "attempt")},
                }
                rows.append(latest[task])
        elif event == "rolled_back":
            for row in latest.values():
                if row["status"] in ("dealt", "scored") or (
                    row["status"] == "trained" and moment(row) >= moment(entry)
                ):
                    row |= {"status": "dropped", "reason": entry["reason"]}
        else:
            for task in entry["tasks"]:
                latest[task] |= {
                    "status": event,
                    "reason": entry.get("reason"),
                    "version": entry.get("version"),
                }
    return pa.Table.from_pylist(rows, schema=_OUTCOMES)


_OUTCOMES = pa.schema(
    [
        ("task", pa.string()),
        ("stage", pa.int64()),
        ("iteration", pa.int64()),
        ("attempt", pa.int64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("version", pa.int64()),
    ]
)


def _append(file: BinaryIO, record: bytes) -> None:
    file.write(record)
    file.flush()
    os.fsync(file.fileno())


def _status_line(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, ensure_ascii=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _status_entries(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """(entry, byte after it) of each whole line; ends before a torn last one."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        end = data.find(b"\n", at) + 1
        line = data[at : end - 1] if end else b""
        if len(line) < 9 or line[:8] != b"%08x" % zlib.crc32(line[9:]):
            if end == 0 or end == len(data) or not data[at:].strip(b"\0"):
                return
            raise DataFailure(f"{path}: damaged at byte {at}, and the damage is not at its end")
        yield json.loads(line[9:]), end
        at = end


def records(path: Path, start: int = 0) -> Iterator[tuple[bytes, int]]:
    """(payload, byte after it, counted from `start`) of each whole record; ends before a torn last
    one. start: a byte at which a record begins; what lies before it is not read."""
    with path.open("rb") as file:
        file.seek(start)
        data, at = file.read(), 0
    while at < len(data):
        if len(data) - at < _HEADER.size or not data[at:].strip(b"\0"):
            return
        magic, length, crc = _HEADER.unpack_from(data, at)
        start, end = at + _HEADER.size, at + _HEADER.size + length
        if magic != _MAGIC or zlib.crc32(data[start:end]) != crc:
            if magic == _MAGIC and end >= len(data):
                return
            raise DataFailure(f"{path}: damaged at byte {at}, and the damage is not at its end")
        yield data[start:end], end
        at = end
