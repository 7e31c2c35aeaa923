"""Conversations, SFT pairs and texts between files and records of our own.

An MRL row is `{"query", "answer", "think"?, "strategy"?, "interactions": [{"query", "answer",
"think"?, "role"?, "facts"?: [{"value", "said_in", "outdated"?: [value, …]}]}]}`. An interaction
with facts and no role is a recall. Nothing enters unchecked (`checks.py`), but whether values stand
literally where `said_in` says is left to `engram data validate`: values may also follow from what
was said.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.data.checks import (
    PAIR_FIELDS,
    ROW_FIELDS,
    TEXT_FIELDS,
    Fault,
    pair_faults,
    row_faults,
    text_faults,
)
from common.data.columns import NO_COLUMNS, Columns, Layout
from common.data.readers import checked_records, write_records
from common.episode import Fact, Interaction, Row
from common.failures import InputError

_FACT = pa.struct(
    [("value", pa.string()), ("said_in", pa.int64()), ("outdated", pa.list_(pa.string()))]
)
_INTERACTION = [("query", pa.string()), ("answer", pa.string()), ("think", pa.string())]
PAIR_SCHEMA = pa.schema(_INTERACTION)
ROW_SCHEMA = pa.schema(
    [
        *_INTERACTION,
        ("strategy", pa.string()),
        (
            "interactions",
            pa.list_(pa.struct([*_INTERACTION, ("role", pa.string()), ("facts", pa.list_(_FACT))])),
        ),
    ]
)

ROWS = Layout((ROW_FIELDS,), NO_COLUMNS)
"""How conversations are read where no column has another name."""

_TEMPLATE = re.compile(
    r"\s*(?:\[BOS\])?\s*\[Q\](?P<query>.*?)(?:\[T\](?P<think>.*?))?\[A\](?P<answer>.*?)(?:\[EOS\])?\s*",
    re.DOTALL,
)


def up_to(rows: Sequence[Row], follow_ups: int | None) -> list[Row]:
    """The conversations with at most so many follow-ups; None: all."""
    return [row for row in rows if follow_ups is None or len(row.interactions) <= follow_ups]


def load_rows(
    source: str | Path,
    columns: Columns = NO_COLUMNS,
    max_follow_ups: int | None = None,
    setting: str = "",
) -> list[Row]:
    """Conversations from a file or a `datasets` name. columns: of the file, by field.
    max_follow_ups: of the longest conversation; None: of any length. setting: the name of the one
    that raises it, where there is one."""
    layout = replace(ROWS, columns=columns)
    faults = partial(row_faults, max_follow_ups=max_follow_ups, setting=setting)
    return [_row(record) for record in checked_records(source, faults, layout=layout)]


def save_rows(rows: Iterable[Row], path: str | Path) -> None:
    """Conversations to a file that `load_rows` reads back to equal rows."""
    write_records((row_to_dict(row) for row in rows), path, ROW_SCHEMA)


def row_from_dict(record: Any, where: str = "row") -> Row:
    """A row from its record; InputError names the field that is wrong."""
    for field, what in row_faults(record):
        raise InputError(f"{where}, field {field}", what)
    return _row(record)


def row_to_dict(row: Row) -> dict[str, Any]:
    """The record of a row, without the fields that hold their default."""
    return {
        **_spoken(row.query, row.answer, row.think),
        **({} if row.strategy_open else {"strategy": row.strategy}),
        "interactions": [
            {
                **_spoken(turn.query, turn.answer, turn.think),
                "role": turn.role,
                **({"facts": [_fact_to_dict(fact) for fact in turn.facts]} if turn.facts else {}),
            }
            for turn in row.interactions
        ],
    }


def _fact_to_dict(fact: Fact) -> dict[str, Any]:
    outdated = {"outdated": list(fact.outdated)} if fact.outdated else {}
    return {"value": fact.value, "said_in": fact.said_in, **outdated}


def load_pairs(source: str | Path, columns: Columns = NO_COLUMNS) -> list[Interaction]:
    """Interactions for SFT: records of {"query", "answer", "think"?}, or of {"text"} that reads
    "[Q] … [A] …"."""
    layout = Layout((PAIR_FIELDS, TEXT_FIELDS), columns)
    records = checked_records(source, _pair_faults, layout=layout)
    return [
        _interaction(_from_template(record) if "text" in record else record) for record in records
    ]


def save_pairs(pairs: Iterable[Interaction], path: str | Path) -> None:
    """Interactions to a file that `load_pairs` reads back; roles and facts are left out."""
    records = (_spoken(pair.query, pair.answer, pair.think) for pair in pairs)
    write_records(records, path, PAIR_SCHEMA)


def load_texts(source: str | Path, columns: Columns = NO_COLUMNS) -> list[str]:
    """Texts for language modelling: records of {"text"}, or the lines of a .txt file."""
    layout = Layout((TEXT_FIELDS,), columns)
    return [record["text"] for record in checked_records(source, text_faults, layout=layout)]


def pairs_to_read(rows: Sequence[Row]) -> list[tuple[Interaction, Interaction]]:
    """Each turn that can be answered from one earlier turn alone, after that turn, which says all
    that it asks for. Where no conversation has facts, nothing tells turns apart: then it is every
    follow-up, after the turn before it."""
    told = any(turn.facts for row in rows for turn in row.interactions)
    return [
        (row.turns[source], turn)
        for row in rows
        for i, turn in enumerate(row.interactions)
        for source in ({fact.said_in for fact in turn.facts} if told else {i})
        if len({fact.said_in for fact in turn.facts}) < 2
    ]


def value_counts(rows: Iterable[Row]) -> dict[str, int]:
    """How often the questions of conversations ask for each value; values in their order."""
    asked = Counter(fact.value for row in rows for turn in row.interactions for fact in turn.facts)
    return dict(sorted(asked.items()))


def _row(record: dict[str, Any]) -> Row:
    return Row(
        query=record["query"],
        answer=record["answer"],
        interactions=tuple(_interaction(each) for each in record["interactions"]),
        think=record.get("think"),
        strategy=record.get("strategy") or "cumulative",
        strategy_open=not record.get("strategy"),
    )


def _interaction(record: dict[str, Any]) -> Interaction:
    facts = tuple(
        Fact(fact["value"], fact["said_in"], tuple(fact.get("outdated") or ()))
        for fact in record.get("facts") or ()
    )
    role: Any = record.get("role") or ("recall" if facts else "act")
    return Interaction(record["query"], record["answer"], record.get("think"), role, facts)


def _spoken(query: str, answer: str, think: str | None) -> dict[str, str]:
    return {"query": query, "answer": answer, **({} if think is None else {"think": think})}


def _pair_faults(record: Any) -> Iterator[Fault]:
    if not (isinstance(record, dict) and "text" in record):
        yield from pair_faults(record)
        return
    faults = list(text_faults(record))
    yield from faults
    if not faults:
        if _TEMPLATE.fullmatch(record["text"]):
            yield from pair_faults(_from_template(record))
        else:
            yield "text", "should read '[Q] query [A] answer'"


def _from_template(record: dict[str, Any]) -> dict[str, Any]:
    found = _TEMPLATE.fullmatch(record["text"])
    assert found is not None, "checked before"
    return {
        name: text if text is None else text.strip() for name, text in found.groupdict().items()
    }
