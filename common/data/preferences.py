"""Preferences: answers to one prompt from best to worst.

A record is `{"prompt", "chosen", "rejected", "margin"?}`, or with more than two answers `{"prompt",
"answers": [best, …, worst]}`; either may have `"history": [{"query", "answer"}]`, what was said
before the prompt, and `"group"`: records of one group never stand in two splits, and count as one
when confidence is computed. Without it, a group is what has the same history and prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.data.checks import NUMBER, Fault, pair_faults, shape_faults
from common.data.columns import NO_COLUMNS, Columns, Layout
from common.data.readers import checked_records, write_records
from common.data.splits import conversation_hash, text_hash
from common.episode import Interaction, Row
from common.seeding import derive
from common.text.values import contains_value, replaced

SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("margin", pa.float64()),
        ("history", pa.list_(pa.struct([("query", pa.string()), ("answer", pa.string())]))),
        ("group", pa.string()),
    ]
)

FIELDS = {
    "prompt": str,
    "chosen": str,
    "rejected": str,
    "answers": list,
    "margin": NUMBER,
    "history": list,
    "group": str,
}
LARGEST_MARGIN = 1_000_000
"""A margin beyond it, or one that is no number, would leave nothing of a loss but itself."""


@dataclass(frozen=True, slots=True)
class Preference:
    prompt: str
    answers: tuple[str, ...]
    """From best to worst, two at least."""
    margin: float = 0.0
    """By how much the better of two is better, in units of reward; 0 where it is not known, and
    with more than two."""
    history: tuple[tuple[str, str], ...] = ()
    """(query, answer) of the interactions before."""
    group: str = ""

    @property
    def earlier(self) -> tuple[Interaction, ...]:
        return tuple(Interaction(query, answer) for query, answer in self.history)

    @property
    def answered(self) -> tuple[Interaction, ...]:
        """The prompt with each of its answers."""
        return tuple(Interaction(self.prompt, answer) for answer in self.answers)

    @property
    def rows(self) -> list[Row]:
        """The conversation with each of its answers; none where nothing was said before the
        prompt."""
        if not self.history:
            return []
        opening, *rest = self.earlier
        return [Row(opening.query, opening.answer, (*rest, answer)) for answer in self.answered]


def load_preferences(source: str | Path, columns: Columns = NO_COLUMNS) -> list[Preference]:
    """Preferences from a file or a `datasets` name. BadRecords names file, line and field.

    columns: of the file, by field.
    """
    records = checked_records(source, preference_faults, layout=Layout((FIELDS,), columns))
    return [_preference(record) for record in records]


def save_preferences(preferences: Iterable[Preference], path: str | Path) -> None:
    """To a file that `load_preferences` reads back to equal preferences."""
    write_records((_record(preference) for preference in preferences), path, SCHEMA)


def without_answers_to(rows: Iterable[Row], held: Iterable[Preference]) -> list[Row]:
    """The conversations in which no held-out prompt is answered, after the very same history."""
    asked = {(preference.history, preference.prompt) for preference in held}
    kept = []
    for row in rows:
        said = tuple((turn.query, turn.answer) for turn in row.turns)
        if not any((said[:k], query) in asked for k, (query, _) in enumerate(said)):
            kept.append(row)
    return kept


def recall_preferences(rows: Sequence[Row], seed: int) -> list[Preference]:
    """One preference for each turn that asks for one fact: its answer against the same answer with
    another value, for reward models that read memory.

    The other value is one that the same query is answered with elsewhere in `rows`, so nothing but
    memory tells the two apart.
    """
    known: dict[str, set[str]] = defaultdict(set)
    asking = [
        (row, k, turn)
        for row in rows
        for k, turn in enumerate(row.turns)
        if k and len(turn.facts) == 1
    ]
    for _, _, turn in asking:
        known[turn.query].add(turn.facts[0].value)
    found = []
    for number, (row, k, turn) in enumerate(asking):
        value = turn.facts[0].value
        others = sorted(known[turn.query] - {value})
        if others and contains_value(turn.answer, value):
            other = others[derive(seed, "other value", number) % len(others)]
            wrong = replaced(turn.answer, value, other)
            if wrong != turn.answer:
                history = tuple((before.query, before.answer) for before in row.turns[:k])
                found.append(
                    Preference(
                        turn.query,
                        (turn.answer, wrong),
                        history=history,
                        group=conversation_hash(row),
                    )
                )
    return found


def preference_faults(record: Any) -> Iterator[Fault]:
    """Faults of one record; unknown fields come first."""
    # Parquet writes fields that a record does not have as null, so whether it is a ranking is told
    # by what is not null.
    ranking = isinstance(record, dict) and record.get("answers") is not None
    required = (
        {"prompt": str, "answers": list}
        if ranking
        else {"prompt": str, "chosen": str, "rejected": str}
    )
    optional = {"history": list, "group": str, "margin": NUMBER}
    known = (
        required
        | optional
        | dict.fromkeys(["chosen", "rejected"] if ranking else ["answers"], type(None))
    )
    faults = list(
        shape_faults(
            record,
            required,
            {name: kind for name, kind in known.items() if name not in required},
            "",
        )
    )
    yield from faults
    if faults:
        return
    answers = _answers(record)
    if not record["prompt"].strip():
        yield "prompt", "is empty"
    if len(answers) < 2:
        yield "answers", f"holds {len(answers)}: a preference takes two at least"
    for i, answer in enumerate(answers):
        name = f"answers.{i}" if ranking else ("chosen", "rejected")[i]
        if not isinstance(answer, str) or not answer.strip():
            yield name, "should be a text that is not empty"
    if len(set(map(str, answers))) < len(answers):
        yield "answers" if ranking else "rejected", "is an answer twice: there is nothing to prefer"
    if ranking and record.get("margin"):
        yield "margin", "goes with one chosen and one rejected answer only"
    elif not abs(record.get("margin") or 0) <= LARGEST_MARGIN:
        yield "margin", f"should be a number up to {LARGEST_MARGIN:,}"
    for i, turn in enumerate(record.get("history") or ()):
        for field, what in pair_faults(turn):
            yield f"history.{i}.{field}", what


def _answers(record: Mapping[str, Any]) -> list[Any]:
    answers = record.get("answers")
    return [record["chosen"], record["rejected"]] if answers is None else answers


def _preference(record: Mapping[str, Any]) -> Preference:
    history = tuple((turn["query"], turn["answer"]) for turn in record.get("history") or ())
    return Preference(
        prompt=record["prompt"],
        answers=tuple(_answers(record)),
        margin=float(record.get("margin") or 0.0),
        history=history,
        group=record.get("group") or group_of(history, record["prompt"]),
    )


def group_of(history: Sequence[tuple[str, str]], prompt: str) -> str:
    """The group of a record that names none: what has the same history and prompt."""
    said = "\x1e".join(part for turn in history for part in turn)
    return text_hash(f"{said}\x1f{prompt}")


def _record(preference: Preference) -> dict[str, Any]:
    history = [{"query": query, "answer": answer} for query, answer in preference.history]
    rest = ({"margin": preference.margin} if preference.margin else {}) | (
        {"history": history} if history else {}
    )
    pair = len(preference.answers) == 2
    answers = (
        dict(zip(("chosen", "rejected"), preference.answers, strict=True))
        if pair
        else {"answers": list(preference.answers)}
    )
    return {"prompt": preference.prompt, **answers, **rest, "group": preference.group}
