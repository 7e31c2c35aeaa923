"""Checks of one record of data: pure functions from a decoded record to its faults.

A fault is (field, sentence). Unknown fields are told first: a misspelt field usually makes another
one missing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from common.data.decoding import shortened
from common.episode import Role, Strategy
from common.failures import InputError, nearest
from common.text.values import value_words

Fault = tuple[str, str]

_ROW = {"query": str, "answer": str, "interactions": list}
_ROW_OPTIONAL = {"think": str, "strategy": str}
_INTERACTION = {"query": str, "answer": str}
_INTERACTION_OPTIONAL = {"think": str, "role": str, "facts": list}
_FACT = {"value": str, "said_in": int}
_FACT_OPTIONAL = {"outdated": list}
NUMBER = (int, float)
CHATS = ("messages", "conversations")
"""Fields that hold the messages of a conversation in files of other programs."""
ROW_FIELDS = {**_ROW, **_ROW_OPTIONAL}
PAIR_FIELDS = {"query": str, "answer": str, "think": str}
TEXT_FIELDS = {"text": str}
_NAMES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    NUMBER: "a number",
    list: "a list",
    dict: "an object",
    type(None): "left out",
}


UNKNOWN = "is no field of this record"


def is_unknown(fault: InputError) -> bool:
    """Whether a fault is a field that the record should not have."""
    return fault.what.startswith(UNKNOWN)


def row_faults(
    record: Any, max_follow_ups: int | None = None, setting: str = ""
) -> Iterator[Fault]:
    """Faults of an MRL row by itself. Whether its facts agree with what is said is for
    common/data/facts.py. max_follow_ups: None: any number. setting: the name of the one that
    raises it, where there is one."""
    faults = list(shape_faults(record, _ROW, _ROW_OPTIONAL, ""))
    yield from faults
    if faults:
        return
    yield from _words(record, "")
    yield from _one_of(record, "strategy", get_args(Strategy), "")
    interactions = record["interactions"]
    if not interactions:
        yield "interactions", "is empty: a conversation needs at least one follow-up"
    if max_follow_ups is not None and len(interactions) > max_follow_ups:
        named = f" ({setting})" if setting else ""
        yield (
            "interactions",
            f"has {len(interactions):,} follow-ups, {max_follow_ups:,} are allowed{named}: does "
            "this conversation never end?",
        )
        return
    whole = True
    for i, interaction in enumerate(interactions):
        at = f"interactions.{i}."
        wrong = list(shape_faults(interaction, _INTERACTION, _INTERACTION_OPTIONAL, at))
        whole = whole and not wrong
        yield from wrong
        if not wrong:
            yield from _words(interaction, at)
            yield from _one_of(interaction, "role", get_args(Role), at)
    if whole:
        for i, interaction in enumerate(interactions):
            for j, fact in enumerate(interaction.get("facts") or []):
                yield from one_fact_faults(fact, i + 1, f"interactions.{i}.facts.{j}.")


def one_fact_faults(fact: Any, turn: int, at: str) -> Iterator[Fault]:
    """Faults of a fact by itself. turn: the turn that asks for it."""
    faults = list(shape_faults(fact, _FACT, _FACT_OPTIONAL, at))
    yield from faults
    if faults:
        return
    value, said_in = fact["value"], fact["said_in"]
    if not value_words(value):
        yield f"{at}value", "is empty"
    elif not 0 <= said_in < turn:
        yield (
            f"{at}said_in",
            f"is {said_in}, but should be 0 to {turn - 1}: the value was said before "
            f"interaction {turn} asks for it",
        )
    for k, old in enumerate(fact.get("outdated") or []):
        if not isinstance(old, str) or not old.strip():
            yield f"{at}outdated.{k}", "should be text: a value that this one replaced"
        elif value_words(old) == value_words(value):
            yield (
                f"{at}outdated.{k}",
                f"{shortened(old)!r} is the value itself, which cannot have replaced itself",
            )


def pair_faults(record: Any) -> Iterator[Fault]:
    """Faults of an SFT record with `query` and `answer`."""
    faults = list(shape_faults(record, _INTERACTION, {"think": str}, ""))
    yield from faults or _words(record, "")


def text_faults(record: Any) -> Iterator[Fault]:
    """Faults of an LM record with `text`."""
    faults = list(shape_faults(record, {"text": str}, {}, ""))
    yield from faults
    if not faults and not record["text"].strip():
        yield "text", "is empty"


def shape_faults(
    record: Any, required: Mapping[str, Any], optional: Mapping[str, Any], at: str
) -> Iterator[Fault]:
    """Fields that are unknown, missing or of another type than `required` and `optional` say; `at`
    stands before their names."""
    if not isinstance(record, dict):
        yield (
            at.rstrip(".") or "record",
            f"should be an object with {', '.join(required)}, not {kind_of(record)}",
        )
        return
    known = {**required, **optional}
    meant = set()
    for name in record:
        if name not in known:
            meant.update(difflib.get_close_matches(str(name), known, n=1))
            yield (
                f"{at}{shortened(name)}",
                f"{UNKNOWN}; {nearest(name, known)}{'' if at else _way(name)}",
            )
    for name, kind in known.items():
        # Parquet and `datasets` write an absent optional field as null.
        if record.get(name) is None:
            if name in required and name not in meant:
                yield f"{at}{name}", "is missing"
        elif not isinstance(record[name], kind) or isinstance(record[name], bool):
            yield f"{at}{name}", f"should be {_NAMES[kind]}, not {kind_of(record[name])}"


def _way(name: str) -> str:
    """The way to read a record with a column that is unknown."""
    if name in CHATS:
        return "; `engram data convert chat` reads files with it"
    return " (`data.columns` names columns to read and passes over the others)"


def _words(record: Mapping[str, Any], at: str) -> Iterator[Fault]:
    for name in ("query", "answer"):
        if not record[name].strip():
            yield f"{at}{name}", "is empty"


def _one_of(
    record: Mapping[str, Any], name: str, valid: tuple[str, ...], at: str
) -> Iterator[Fault]:
    if record.get(name) is not None and record[name] not in valid:
        yield f"{at}{name}", f"is {shortened(record[name])!r}; {nearest(record[name], valid)}"


def kind_of(value: Any) -> str:
    """The type of a value, in words."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return _NAMES.get(type(value), type(value).__name__)
