"""The figures that a list of episodes shows, as arrays, read from RUN/episodes once and kept.

Sealed files never change, so each is read once; of the open segment only what was added is. Token
ids and log-probs, nearly all of a file, are read only of the one episode that is opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.episode_arrow import require_episodes
from common.failures import DataFailure, InputError
from common.storage.run_directory import RunDirectory
from deploy.view.answers import Recalled, recalled_of
from rollout.journal.journal import records

HEADS = (
    "id", "stage", "step", "strategy", "status", "iteration", "attempt", "weights_version", "worker"
)  # fmt: skip
"""Columns of an episode that the list shows."""
JUDGED = ("reward", "failure", "facts", "role")
"""Fields of turns that it shows or filters by."""
TEXTS = ("query", "answer", "reference", "facts")
"""Fields that answers are compared with facts by, and that are searched."""
HELD_TEXTS = 8
"""Files whose texts are kept in memory."""


@dataclass
class Part:
    """Episodes of one sealed file, or of records of the open segment."""

    name: str
    heads: pa.Table
    reward: np.ndarray
    """Mean reward of the turns that have one: float64 [episodes], nan where none has."""
    failed: np.ndarray
    """Whether it or a turn of it failed: bool [episodes]."""
    turns: np.ndarray
    """Answered turns: int64 [episodes]."""
    distances: np.ndarray
    """Distances of the facts asked for, one bit each (the last for all from 63 on): uint64
    [episodes]."""
    table: pa.Table | None = None
    """All columns, of the open segment only."""
    recalled: Recalled | None = None
    """Kept once it was asked for."""
    named: dict[int, np.ndarray] = field(default_factory=dict)
    """Whether each fact of an episode was named, by its row: kept once it was listed."""

    def __len__(self) -> int:
        return len(self.reward)


@dataclass
class Rows:
    """The episodes of a run, last attempts only, in the order in which they were recorded."""

    parts: list[Part] = field(default_factory=list)
    part: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Which part holds the episode: [episodes]."""
    row: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Where in its part: [episodes]."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """HEADS and the arrays of `Part`, by name: [episodes] each."""

    def __len__(self) -> int:
        return len(self.part)


class EpisodeIndex:
    def __init__(self, run: RunDirectory):
        self._run = run
        self._sealed: dict[str, Part | None] = {}
        """Files that were read; None for one that is damaged."""
        self._open: dict[str, tuple[int, list[Part]]] = {}
        """Bytes that were read of each open segment, and their episodes."""
        self._texts: dict[str, pa.Table] = {}
        self._damage: dict[str, str] = {}
        self.rows = Rows()

    @property
    def problems(self) -> list[str]:
        """A sentence on each file that cannot be read."""
        return [f"episodes/{name}: {why}" for name, why in sorted(self._damage.items())]

    def refresh(self) -> bool:
        """Read what is new; whether there was anything."""
        names = self._run.names("episodes")
        sealed = [name for name in names if name.startswith("part-")]
        changed = False
        for name in sealed:
            if name not in self._sealed:
                self._sealed[name] = self._read_sealed(name)
                changed = True
        for name in self._sealed.keys() - set(sealed):
            del self._sealed[name]
            self._damage.pop(name, None)
            changed = True
        # The file of a segment that was sealed meanwhile holds its episodes.
        current = [
            name
            for name in names
            if name.startswith("_open-") and _sealed_as(name) not in self._sealed
        ]
        for name in self._open.keys() - set(current):
            del self._open[name]
            self._damage.pop(name, None)
            changed = True
        if self._run.local is not None:
            for name in current:
                changed |= self._read_open(name)
        if changed:
            self._join()
        return changed

    def find(self, episode: str) -> int | None:
        """Index of an episode by its id."""
        if not len(self.rows):
            return None
        found = np.flatnonzero(self.rows.columns["id"] == episode)
        return int(found[0]) if len(found) else None

    def whole(self, index: int) -> pa.Table:
        """One episode with all its columns, as a table of one row."""
        part, row = self.rows.parts[self.rows.part[index]], int(self.rows.row[index])
        if part.table is not None:
            return part.table.slice(row, 1)
        with self._file(part.name) as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                size = parquet.metadata.row_group(group).num_rows
                if row < size:
                    return parquet.read_row_group(group).slice(row, 1)
                row -= size
        raise InputError(self._run.path(f"episodes/{part.name}"), "has fewer episodes than it had")

    def texts(self, part: Part) -> pa.Table:
        """TEXTS of the turns of a part, as its files have them."""
        if part.table is not None:
            return part.table
        if part.name not in self._texts:
            with self._file(part.name) as file:
                parquet = pq.ParquetFile(file)
                self._texts[part.name] = parquet.read(columns=_leaves(parquet, (), TEXTS))
            while len(self._texts) > HELD_TEXTS:
                with contextlib.suppress(StopIteration, KeyError):
                    self._texts.pop(next(iter(self._texts)))
        return self._texts[part.name]

    def recalled(self, part: Part) -> Recalled:
        """Every fact that the turns of a part ask for, and whether the answer names it."""
        if part.recalled is None:
            part.recalled = recalled_of(self.texts(part)["turns"].to_pylist())
        return part.recalled

    def _file(self, name: str) -> Any:
        return self._run.filesystem.open(self._run.inner(f"episodes/{name}"), "rb")

    def _read_sealed(self, name: str) -> Part | None:
        try:
            with self._file(name) as file:
                parquet = pq.ParquetFile(file)
                require_episodes(parquet.schema_arrow, self._run.path(f"episodes/{name}"))
                return _part(name, parquet.read(columns=_leaves(parquet, HEADS, JUDGED)))
        except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, OSError) as damage:
            self._damage[name] = f"cannot be read: {_line(damage)}"
        except InputError as other:
            self._damage[name] = other.what
        return None

    def _read_open(self, name: str) -> bool:
        assert self._run.local is not None
        at, parts = self._open.get(name, (0, []))
        try:
            end, tables = 0, []
            for payload, end in records(self._run.local / "episodes" / name, at):  # noqa: B007
                table = pa.ipc.open_stream(payload).read_all()
                require_episodes(table.schema, name)
                tables.append(table)
        except FileNotFoundError:
            return False  # sealed since it was listed
        except (DataFailure, InputError, pa.ArrowInvalid) as damage:
            self._damage[name] = _line(damage)
            return False
        if not tables:
            return False
        table = pa.concat_tables(tables, promote_options="default")
        self._open[name] = at + end, [*parts, _part(name, table, table)]
        return True

    def _join(self) -> None:
        parts = [part for _, part in sorted(self._sealed.items()) if part is not None and len(part)]
        parts += [part for _, (_, found) in sorted(self._open.items()) for part in found]
        if not parts:
            self.rows = Rows()
            return
        sizes = [len(part) for part in parts]
        columns: dict[str, np.ndarray] = {
            name: np.concatenate(
                [part.heads[name].to_numpy(zero_copy_only=False) for part in parts]
            )
            for name in HEADS
        }
        for name in ("reward", "failed", "turns", "distances"):
            columns[name] = np.concatenate([getattr(part, name) for part in parts])
        kept = _last_attempts(columns["id"], columns["attempt"])
        self.rows = Rows(
            parts,
            np.repeat(np.arange(len(parts)), sizes)[kept],
            np.concatenate([np.arange(size) for size in sizes])[kept],
            {name: column[kept] for name, column in columns.items()},
        )


def _last_attempts(ids: np.ndarray, attempts: np.ndarray) -> np.ndarray:
    """Rows of the episodes that count: of those with one id the last attempt."""
    last: dict[str, int] = {}
    for row, name in enumerate(ids.tolist()):
        if name not in last or attempts[row] >= attempts[last[name]]:
            last[name] = row
    return np.array(sorted(last.values()), np.int64)


def _leaves(parquet: pq.ParquetFile, heads: Sequence[str], turns: Sequence[str]) -> list[str]:
    """Leaves of a file's schema that hold these columns and fields of turns."""
    found: list[str] = []
    for index in range(len(parquet.schema)):
        path: list[str] = parquet.schema.column(index).path.split(".")
        # turns.list.element.facts.list.element.value
        if path[0] in heads or (path[0] == "turns" and path[3] in turns):
            found.append(".".join(path))
    return found


def _part(name: str, read: pa.Table, table: pa.Table | None = None) -> Part:
    """read: HEADS and JUDGED at least."""
    turns = read["turns"].combine_chunks()
    offsets = turns.offsets.to_numpy() - turns.offsets[0].as_py()
    flat = turns.flatten()
    owner = np.repeat(np.arange(len(turns)), np.diff(offsets))
    index = np.arange(len(flat)) - offsets[:-1][owner]
    reward, failure, facts = (_field(flat, name) for name in ("reward", "failure", "facts"))
    scored = pc.is_valid(reward).to_numpy(zero_copy_only=False) & (index > 0)
    sums = np.bincount(
        owner[scored],
        pc.fill_null(reward, 0.0).to_numpy(zero_copy_only=False)[scored],
        len(turns),
    )
    counts = np.bincount(owner[scored], minlength=len(turns))
    turn_failed = pc.is_valid(failure).to_numpy(zero_copy_only=False)
    failed = np.bincount(owner[turn_failed], minlength=len(turns)) > 0
    failed |= np.isin(
        read["status"].to_numpy(zero_copy_only=False).astype(str), ("failed", "unscored")
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / counts
    return Part(
        name,
        read.select(HEADS),
        np.where(counts > 0, mean, np.nan),
        failed,
        np.maximum(np.diff(offsets) - 1, 0),
        _distances(facts, index, owner, len(turns)),
        table,
    )


def _field(flat: pa.StructArray, name: str) -> pa.Array:
    return flat.field(flat.type.get_field_index(name))


def _distances(
    facts: pa.ListArray, index: np.ndarray, owner: np.ndarray, episodes: int
) -> np.ndarray:
    """index, owner: turn and episode of each item of `facts`."""
    lengths = pc.fill_null(pc.list_value_length(facts), 0).to_numpy(zero_copy_only=False)
    said_in = _field(facts.flatten(), "said_in").to_numpy(zero_copy_only=False)
    turn = np.repeat(index, lengths)
    distance = np.clip(turn - said_in, 0, 63).astype(np.uint64)
    bits = np.zeros(episodes, np.uint64)
    asked = turn > 0
    np.bitwise_or.at(
        bits, np.repeat(owner, lengths)[asked], np.left_shift(np.uint64(1), distance[asked])
    )
    return bits


def _sealed_as(segment: str) -> str:
    return segment.replace("_open-", "part-").replace(".log", ".parquet")


def _line(failure: Exception) -> str:
    return " ".join(str(failure).split())
