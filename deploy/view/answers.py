"""Which values of a conversation each answer recalls, misses or gets wrong, and where they stand in
the texts. Values are matched by the code of rewards and evaluation
(`reward_service/components/recall.py`, `common/text/values.py`) and by nothing else.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from common.episode import Fact, Turn
from common.text.values import contains_value, folded, place, value_words
from reward_service.components.recall import (
    Words,
    conversation_values,
    values_named,
    words_of_values,
)

Mark = Literal["told", "recalled", "wrong", "asked"]


@dataclass(frozen=True)
class Recalled:
    """Facts asked for in some episodes: [facts] each."""

    episode: np.ndarray
    told: np.ndarray
    """Turn that last said the value."""
    asked: np.ndarray
    """Turn that asks for it."""
    named: np.ndarray
    """Whether the answer names it."""


def recalled_of(episodes: Iterable[Sequence[Mapping[str, Any]]]) -> Recalled:
    """episodes: turns of each, with query, answer, reference and facts."""
    found: list[tuple[int, int, int, bool]] = []
    for number, records in enumerate(episodes):
        turns = [_turn(record) for record in records]
        known = known_values(turns)
        for index, turn in enumerate(turns):
            if index and turn.facts:
                right = judged(turn, known)[0]
                found += [
                    (number, fact.said_in, index, value_words(fact.value) in right)
                    for fact in turn.facts
                ]
    columns = np.array(found, np.int64).reshape(-1, 4)
    return Recalled(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3].astype(bool))


def _turn(record: Mapping[str, Any]) -> Turn:
    facts = tuple(
        Fact(fact["value"], fact["said_in"], tuple(fact["outdated"] or ()))
        for fact in record["facts"] or ()
    )
    return Turn(
        [], [], [], [],
        facts=facts,
        query=record["query"] or "",
        answer=record["answer"] or "",
        reference=record["reference"] or "",
    )  # fmt: skip


def known_values(turns: Iterable[Turn]) -> frozenset[Words]:
    """Values of a conversation: those asked for, and those that they replaced."""
    return words_of_values(conversation_values(turns))


def judged(turn: Turn, known: Collection[Words]) -> tuple[set[Words], set[Words]]:
    """Right and wrong values that the answer of a turn with facts names; none where a value holds
    nothing that could be matched."""
    if not all(value_words(fact.value) for fact in turn.facts):
        return set(), set()
    return values_named(turn, known)


@dataclass(frozen=True)
class Span:
    start: int
    end: int
    mark: Mark


def segments(text: str, marks: Mapping[Mark, Iterable[str]]) -> list[dict[str, str]]:
    """The text cut where values stand in it: [{"text", "mark"?}], which join to the text."""
    found: list[Span] = []
    wanted = [(value, mark) for mark, values in marks.items() for value in values]
    # Longer ones first: York is not marked where "New York" is.
    for value, mark in sorted(wanted, key=lambda each: -len(each[0])):
        for start, end in places(text, value):
            if all(end <= other.start or start >= other.end for other in found):
                found.append(Span(start, end, mark))
    parts: list[dict[str, str]] = []
    at = 0
    for span in sorted(found, key=lambda span: span.start):
        parts.append({"text": text[at : span.start]})
        parts.append({"text": text[span.start : span.end], "mark": span.mark})
        at = span.end
    parts.append({"text": text[at:]})
    return [part for part in parts if part["text"]]


def places(text: str, value: str) -> list[tuple[int, int]]:
    """From where to where a value stands in a text, each time.

    The place is found in the folded text. Folding changes lengths, so the place in the text itself
    is where as much of it folds to as much; one that does not hold the value then is left out.
    """
    needle, whole = value_words(value), folded(text)
    found: list[tuple[int, int]] = []
    at = 0
    while needle and (standing := place(whole, needle, at)) is not None:
        start = _unfolded(text, whole, standing[0])[-1]
        # A character that folds to nothing may end the value or come after it.
        for end in _unfolded(text, whole, standing[1]):
            if contains_value(text[start:end], value):
                found.append((start, end))
                break
        at = standing[1]
    return found


def _unfolded(text: str, whole: str, at: int) -> tuple[int, int]:
    """The first and the last place in a text that a place of the folded one may come from."""
    if len(text) == len(whole):
        return at, at

    def length(end: int) -> int:
        return len(folded(text[:end]))

    ends = range(len(text) + 1)
    return bisect_left(ends, at, key=length), bisect_right(ends, at, key=length) - 1
