"""Reads the conversations of RUN/episodes one after the other, without their tokens: for people who
look for what went wrong, in runs of any length and while they are written.

A conversation comes as a dict in the names of `Episode` and `Turn`, so that it prints as JSON. A
turn's `memory` is what the policy wrote after it, where its memory is text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.episode_arrow import require_episodes
from common.failures import DataFailure, InputError
from common.storage.run_directory import RunDirectory
from rollout.journal.journal import records

Conversation = dict[str, Any]

EPISODE = ("id", "stage", "step", "iteration", "attempt", "weights_version", "status")
TURN = (
    "role", "query", "thought", "answer", "reference", "facts", "rewards", "reward", "failure"
)  # fmt: skip
WRITE = ("turn", "text", "cut")
BATCH = 64
"""Conversations that are in memory at once."""


def conversations(run: RunDirectory) -> Iterator[Conversation]:
    """All recorded conversations of a run, sealed ones first, in the order in which they were
    recorded. One that was played again after a resume comes again, with a higher `attempt`.

    Raises InputError for a file that is damaged, or of another format.
    """
    for name in run.names("episodes"):
        if name.startswith("part-"):
            yield from _sealed(run, f"episodes/{name}")
    if run.local is not None:
        for path in sorted((run.local / "episodes").glob("_open-*.log")):
            try:
                for payload, _ in records(path):
                    table = pa.ipc.open_stream(payload).read_all()
                    require_episodes(table.schema, str(path))
                    yield from map(_conversation, _texts(table).to_pylist())
            except FileNotFoundError:
                continue  # sealed since it was listed
            except DataFailure as damage:
                raise InputError(str(path), str(damage).removeprefix(f"{path}: ")) from None


def _texts(table: pa.Table) -> pa.Table:
    """The columns that a conversation is made of. Older tables have no `writes`."""
    return table.select(
        [name for name in (*EPISODE, "turns", "writes") if name in table.schema.names]
    )


def _sealed(run: RunDirectory, name: str) -> Iterator[Conversation]:
    where = run.path(name)
    try:
        with run.filesystem.open(run.inner(name), "rb") as file:
            parquet = pq.ParquetFile(file)
            require_episodes(parquet.schema_arrow, where)
            for batch in parquet.iter_batches(BATCH, columns=_columns(parquet)):
                yield from map(_conversation, batch.to_pylist())
    except pa.ArrowInvalid as damage:
        raise InputError(where, f"is damaged: {damage}") from None


def _columns(parquet: pq.ParquetFile) -> list[str]:
    """Leaves of the file's schema that a conversation is made of: token ids and log-probs, nearly
    all of a file, are not read."""
    wanted: list[str] = []
    for index in range(len(parquet.schema)):
        path: Sequence[str] = parquet.schema.column(index).path.split(".")
        # turns.list.element.query
        of_turn = path[0] == "turns" and path[3] in TURN
        if path[0] in EPISODE or of_turn or (path[0] == "writes" and path[3] in WRITE):
            wanted.append(".".join(path))
    return wanted


def _conversation(record: dict[str, Any]) -> Conversation:
    turns = [
        {name: turn[name] for name in TURN}
        | {"rewards": {reward["name"]: reward["value"] for reward in turn["rewards"]}}
        | {"memory": None}
        for turn in record["turns"]
    ]
    for write in record.get("writes") or ():
        turns[write["turn"]]["memory"] = {"text": write["text"], "cut": write["cut"]}
    return {name: record[name] for name in EPISODE} | {"turns": turns}
