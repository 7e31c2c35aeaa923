"""`Episode` as an Arrow table and back, exactly: one row per episode, its turns a list of structs.

The same schema lies in the journal, in RUN/episodes/*.parquet and in a notebook (`pyarrow.dataset`,
`datasets.load_dataset("parquet")`). Rewards and figures are lists of (name, value), as `datasets`
has no maps.
Log-probs are float64: a record must come back as it was written, whatever precision it was made in.
Columns unknown to the schema are left alone by `from_table`, so that a file may say more about its
episodes, and those of `OPTIONAL` may be missing. The schema's metadata hold the format number, in a
file as in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from common.actions import MemoryWrite, SeparateThought
from common.episode import Episode, Fact, Memory, RewardTerm, Turn
from common.storage.formats import EPISODES, require_format

_ids = pa.list_(pa.int32())
_values = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))

FORMAT_KEY = "engram.format"
TERM_NUMBERS = ("weight", "low", "high", "mean", "std")
TURN = pa.struct(
    [
        ("query_ids", _ids),
        ("answer_ids", _ids),
        ("log_probs", pa.list_(pa.float64())),
        ("reference_ids", _ids),
        ("role", pa.string()),
        (
            "facts",
            pa.list_(
                pa.struct(
                    [
                        ("value", pa.string()),
                        ("said_in", pa.int32()),
                        ("outdated", pa.list_(pa.string())),
                    ]
                )
            ),
        ),
        ("done", pa.bool_()),
        ("teacher_forced", pa.bool_()),
        ("query", pa.string()),
        ("answer", pa.string()),
        ("reference", pa.string()),
        ("rewards", _values),
        (
            "terms",
            pa.list_(
                pa.struct(
                    [
                        ("name", pa.string()),
                        ("version", pa.string()),
                        *((key, pa.float64()) for key in TERM_NUMBERS),
                    ]
                )
            ),
        ),
        ("reward", pa.float64()),
        ("reward_std", pa.float64()),
        ("failure", pa.string()),
        ("unfiltered_log_probs", pa.list_(pa.float64())),
        ("thought", pa.string()),
    ]
)

MEMORY = pa.struct([("kind", pa.string()), ("data", pa.binary())])
WRITE = pa.struct(
    [
        ("turn", pa.int32()),
        ("prompt_ids", _ids),
        ("ids", _ids),
        ("log_probs", pa.list_(pa.float64())),
        ("unfiltered_log_probs", pa.list_(pa.float64())),
        ("text", pa.string()),
        ("cut", pa.bool_()),
    ]
)
THOUGHT = pa.struct(
    [
        ("turn", pa.int32()),
        ("before_ids", _ids),
        ("ids", _ids),
        ("log_probs", pa.list_(pa.float64())),
        ("after_ids", _ids),
        ("unfiltered_log_probs", pa.list_(pa.float64())),
    ]
)

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("seed", pa.int64()),
        ("turns", pa.list_(TURN)),
        ("weights_version", pa.int64()),
        ("step", pa.string()),
        ("strategy", pa.string()),
        ("status", pa.string()),
        ("worker", pa.string()),
        ("initial_memory", MEMORY),
        ("final_memory", MEMORY),
        ("memory_hash", pa.string()),
        ("environment", pa.string()),
        ("next_query_ids", _ids),
        ("iteration", pa.int64()),
        ("batch_index", pa.int64()),
        ("sample", pa.int64()),
        ("backend", pa.string()),
        ("memory_change", pa.list_(pa.list_(pa.list_(pa.float32())))),
        ("figures", _values),
        ("writes", pa.list_(WRITE)),
        ("thoughts", pa.list_(THOUGHT)),
    ],
    metadata={FORMAT_KEY: str(EPISODES)},
)

MEMORIES = ("initial_memory", "final_memory")
OPTIONAL = ("memory_change", "figures", "writes", "thoughts")
"""Columns that came later: tables without them are read as if they were empty."""
_GENERATED = {
    "writes": (MemoryWrite, tuple(field.name for field in WRITE)),
    "thoughts": (SeparateThought, tuple(field.name for field in THOUGHT)),
}
"""Columns of things generated beside answers: the record, and the names of its fields."""
_TURN_NAMES = tuple(field.name for field in TURN)


def to_table(episodes: Sequence[Episode]) -> pa.Table:
    return pa.Table.from_pylist([_episode_record(episode) for episode in episodes], schema=SCHEMA)


def require_episodes(schema: pa.Schema, where: str) -> None:
    """Raises InputError where a table holds episodes of another format."""
    found = (schema.metadata or {}).get(FORMAT_KEY.encode())
    require_format(where, None if found is None else int(found), EPISODES)


def from_table(table: pa.Table) -> list[Episode]:
    """Token ids and log-probs come back as lists, facts and turns as tuples, rewards as a dict.

    Raises InputError for a table of another format.
    """
    require_episodes(table.schema, "the table of episodes")
    absent = [name for name in OPTIONAL if name not in table.schema.names]
    names = [name for name in SCHEMA.names if name not in absent]
    return [_episode(record) for record in table.select(names).to_pylist()]


def _episode_record(episode: Episode) -> dict[str, Any]:
    record = {name: getattr(episode, name) for name in SCHEMA.names}
    record |= {name: _memory_record(record[name]) for name in MEMORIES}
    record["figures"] = _pairs(episode.figures)
    for column, (_, names) in _GENERATED.items():
        record[column] = [{name: getattr(one, name) for name in names} for one in record[column]]
    return record | {"turns": [_turn_record(turn) for turn in episode.turns]}


def _pairs(values: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _mapping(pairs: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {pair["name"]: pair["value"] for pair in pairs}


def _memory_record(memory: Memory | None) -> dict[str, Any] | None:
    return None if memory is None else {"kind": memory.kind, "data": memory.data}


def _turn_record(turn: Turn) -> dict[str, Any]:
    record = {name: getattr(turn, name) for name in _TURN_NAMES}
    facts = [
        {"value": fact.value, "said_in": fact.said_in, "outdated": fact.outdated}
        for fact in turn.facts
    ]
    rewards = _pairs(turn.rewards)
    terms = [
        {"name": name, "version": term.version, **{key: getattr(term, key) for key in TERM_NUMBERS}}
        for name, term in turn.terms.items()
    ]
    return record | {"facts": facts, "rewards": rewards, "terms": terms}


def _episode(record: dict[str, Any]) -> Episode:
    held = {name: Memory(**record[name]) for name in MEMORIES if record[name] is not None}
    turns = tuple(_turn(turn) for turn in record["turns"])
    optional = {
        "memory_change": record.get("memory_change") or [],
        "figures": _mapping(record.get("figures") or []),
        **{
            column: tuple(kind(**one) for one in record.get(column) or [])
            for column, (kind, _) in _GENERATED.items()
        },
    }
    return Episode(**(record | held | optional | {"turns": turns}))


def _turn(record: dict[str, Any]) -> Turn:
    facts = tuple(
        Fact(fact["value"], fact["said_in"], tuple(fact["outdated"])) for fact in record["facts"]
    )
    rewards = _mapping(record["rewards"])
    terms = {
        term["name"]: RewardTerm(
            term["weight"], term["version"], *(term[key] for key in TERM_NUMBERS[1:])
        )
        for term in record["terms"]
    }
    return Turn(**(record | {"facts": facts, "rewards": rewards, "terms": terms}))
