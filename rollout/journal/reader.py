"""Episodes of a run's folder for those who look at them: sealed ones and those that arrived since.

Reads only what is asked for, and writes nothing: a run may be going on. Of a task that was dealt
again after a resume, the last attempt counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from common.episode import Episode
from common.episode_arrow import from_table, require_episodes
from common.failures import InputError
from common.storage.run_directory import RunDirectory
from rollout.journal.journal import records

HEAD = ("id", "stage", "iteration", "batch_index", "attempt", "weights_version", "status", "step")
"""Columns of `episode_heads`."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """An episode as a run's folder holds it. stage: index in the run."""

    episode: Episode
    stage: int


def find_episode(run: RunDirectory, episode: str) -> Recorded:
    """An episode of a run by its id, of which the version of the weights may be left out where one
    episode alone has the rest.

    Raises InputError naming episodes that there are.
    """
    found = find_episodes(run, [episode])
    if found:
        return found[0]
    ids = _all_of(run, columns=["id"])["id"]
    whole = sorted({name for name in ids.to_pylist() if name.startswith(f"{episode}@")})
    if len(whole) == 1:
        return find_episodes(run, whole)[0]
    if whole:
        raise InputError(episode, f"was played more than once: {', '.join(whole)}")
    ends = pc.min_max(ids).as_py()
    raise InputError(
        episode,
        f"is none of the run's {len(ids)} episodes, which go from {ends['min']} to {ends['max']}",
    )


def find_episodes(run: RunDirectory, ids: Sequence[str]) -> list[Recorded]:
    """The episodes of a run with these ids, in their order; those that there are none of are left
    out. Raises InputError for a run without episodes."""
    table = _all_of(run, ids=ids).sort_by([("attempt", "descending")])
    rows: dict[str, int] = {}
    for row, name in enumerate(table["id"].to_pylist()):
        rows.setdefault(name, row)
    return [
        Recorded(from_table(table.slice(rows[name], 1))[0], table["stage"][rows[name]].as_py())
        for name in ids
        if name in rows
    ]


def episode_heads(run: RunDirectory) -> pa.Table:
    """The columns HEAD of all episodes of a run, the most recent iteration first. Raises InputError
    for a run without episodes."""
    order = [
        ("stage", "descending"),
        ("iteration", "descending"),
        ("batch_index", "ascending"),
        ("attempt", "descending"),
    ]
    table = _all_of(run, columns=HEAD).sort_by(order)
    last: dict[str, int] = {}
    for row, name in enumerate(table["id"].to_pylist()):
        last.setdefault(name, row)
    return table.take(list(last.values()))


def _all_of(
    run: RunDirectory, columns: Sequence[str] | None = None, ids: Sequence[str] | None = None
) -> pa.Table:
    """One table of all episodes, or of those with these ids, with all columns or these."""
    tables = list(_tables(run, columns, ids))
    if not tables:
        raise InputError(
            run.path("episodes"),
            "holds no episodes yet: they are recorded by memory reinforcement learning",
        )
    # A run that a newer version went on with has files with fewer columns than the later ones.
    return pa.concat_tables(tables, promote_options="default")


def _tables(
    run: RunDirectory, columns: Sequence[str] | None, ids: Sequence[str] | None
) -> Iterator[pa.Table]:
    wanted = None if columns is None else list(columns)
    chosen = None if ids is None else pc.field("id").isin(pa.array(ids, pa.string()))
    for name in run.names("episodes"):
        if name.startswith("part-"):
            with run.filesystem.open(run.inner(f"episodes/{name}"), "rb") as file:
                require_episodes(pq.ParquetFile(file).schema_arrow, run.path(f"episodes/{name}"))
                file.seek(0)
                yield pq.read_table(file, columns=wanted, filters=chosen)
    if run.local is not None:
        for path in sorted((run.local / "episodes").glob("_open-*.log")):
            for payload, _ in records(path):
                table = pa.ipc.open_stream(payload).read_all()
                require_episodes(table.schema, str(path))
                table = table if chosen is None else table.filter(chosen)
                yield table if wanted is None else table.select(wanted)
