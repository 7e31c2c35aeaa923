"""Whether the facts of a conversation agree with what is said in it: pure functions of a record
whose shape is right (common/data/checks.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.data.changes import asks_of_the_past, clauses, content, replacement, says_change
from common.data.checks import Fault
from common.data.decoding import shortened
from common.episode import Fact, Interaction
from common.text.values import contains_value, value_words, words, written

Turns = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Question:
    """One value that a turn asks for."""

    turn: int
    query: str
    value: str
    said_in: int
    outdated: tuple[str, ...]
    at: str
    """Name of the fact in the record, with a dot behind it."""


def fact_faults(record: Mapping[str, Any], literal: bool) -> Iterator[Fault]:
    """Values that were never said or that are out of date, and turns that are not the last to say
    them.

    literal: whether values stand in the turns that say them. Nothing is known of values that only
    follow from what was said (yes, no, counts).
    """
    if not literal:
        return
    turns, questions = [record, *record["interactions"]], _questions(record)
    for question in questions:
        fault, said_in = _said(question, turns, questions)
        if fault is not None:
            yield fault
        if said_in is None or asks_of_the_past(question.query):
            continue
        stale = (
            _answered_otherwise(question, questions, said_in)
            or _outdated(question, questions, said_in, turns)
            or _retold(question, questions, turns)
        )
        if stale is not None:
            yield f"{question.at}value", f"{shortened(question.value)!r} is out of date: {stale}"


def fact_warnings(record: Mapping[str, Any]) -> Iterator[Fault]:
    """Faults that make a question easier or its reference worse, but may be intended."""
    for question in _questions(record):
        if contains_value(question.query, question.value):
            yield (
                f"{question.at}value",
                f"{question.value!r} stands in the question itself: no memory is needed for it",
            )
        if not contains_value(record["interactions"][question.turn - 1]["answer"], question.value):
            yield (
                f"{question.at}value",
                f"{question.value!r} does not stand in the reference answer, which recalls "
                "nothing then",
            )


def contradictions(turns: Sequence[Interaction]) -> Iterator[tuple[int, str]]:
    """Facts of one turn that cannot both be so, as (turn, sentence): a value and the one that
    replaced it, or one value said in two turns. turns: of a row, the opening first.

    Values that two statements say, such as the name of a cat and of a dog, may be told twice; a
    question about the past may ask for what was.
    """
    for number, turn in enumerate(turns):
        for one, other in itertools.combinations(turn.facts, 2):
            what = _contradiction(one, other, turn.query, turns[:number])
            if what is not None:
                yield number, what


def _contradiction(one: Fact, other: Fact, query: str, before: Sequence[Interaction]) -> str | None:
    def said_once(fact: Fact) -> bool:
        return sum(_statements(turn, fact.value) for turn in before) == 1

    def replaced(old: Fact, new: Fact) -> bool:
        return value_words(old.value) in map(value_words, new.outdated)

    first, second = shortened(one.value), shortened(other.value)
    if value_words(one.value) == value_words(other.value):
        if one.said_in == other.said_in or not said_once(one):
            return None
        return f"{first!r} is said in turn {one.said_in} and in turn {other.said_in}"
    if asks_of_the_past(query):
        return None
    if replaced(one, other) and replaced(other, one) and said_once(one) and said_once(other):
        return f"{first!r} and {second!r} each replaced the other"
    for old, new in ((one, other), (other, one)):
        if replaced(old, new) and said_once(old):
            return (
                f"it asks for {shortened(old.value)!r} and for {shortened(new.value)!r}, which "
                "replaced it"
            )
    return None


def _statements(turn: Interaction, value: str) -> int:
    """Clauses of a turn that tell a value: of its query or of its answer, whichever has more, since
    an answer may repeat its query. An answer that recalls the value tells nothing new."""
    recalls = any(value_words(fact.value) == value_words(value) for fact in turn.facts)
    return max(
        sum(contains_value(clause.written, value) for clause in clauses([text]))
        for text in ([turn.query] if recalls else [turn.query, turn.answer])
    )


def _questions(record: Mapping[str, Any]) -> list[_Question]:
    return [
        _Question(
            i + 1,
            interaction["query"],
            fact["value"],
            fact["said_in"],
            tuple(fact.get("outdated") or ()),
            f"interactions.{i}.facts.{j}.",
        )
        for i, interaction in enumerate(record["interactions"])
        for j, fact in enumerate(interaction.get("facts") or [])
    ]


# --- where a value was said ----------------------------------------------------------------------


def _said(
    question: _Question, turns: Turns, questions: Sequence[_Question]
) -> tuple[Fault | None, int | None]:
    """The fault in `said_in`, and the last turn before the question that says the value."""
    value, said_in = question.value, question.said_in
    spoken = [(turn["query"], turn["answer"]) for turn in turns[: question.turn]]
    saying, surely = turns_that_say(value, spoken, [each.value for each in questions])
    if not saying:
        return (
            f"{question.at}value",
            f"{shortened(value)!r} was never said before interaction {question.turn} asks for it",
        ), None
    if said_in not in saying:
        last = (surely or saying)[-1]
        return (
            f"{question.at}said_in",
            f"is {said_in}, where {shortened(value)!r} was never said: turn {last} was the last to "
            "say it",
        ), last
    # "a" is a word, and a grade only in capitals.
    article = len(value) == 1 and value.isascii() and value.isalpha()
    if not article and (surely or saying)[-1] > said_in:
        last = (surely or saying)[-1]
        return (
            f"{question.at}said_in",
            f"is {said_in}, but turn {last} was the last to say {shortened(value)!r}, in its query "
            "or answer",
        ), last
    return None, said_in


def turns_that_say(
    value: str, spoken: Sequence[tuple[str, str]], known: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Turns whose query or answer says the value; and those of them that surely do, since they
    write it in the same capitals and not within a longer value of `known`."""
    saying = [
        i for i, texts in enumerate(spoken) if any(contains_value(text, value) for text in texts)
    ]
    # "may" is not the month May, nor is "York" said where "New York" is.
    longer = [each for each in known if each != value and contains_value(each, value)]
    surely = [i for i in saying if any(written(text, value, longer) for text in spoken[i])]
    return saying, surely


# --- values that are out of date -----------------------------------------------------------------


def _answered_otherwise(
    question: _Question, questions: Sequence[_Question], said_in: int
) -> str | None:
    """The same question, asked elsewhere, names a value that was told after this one."""
    for other in _others(question, questions):
        if said_in < other.said_in < question.turn and words(other.query) == words(question.query):
            return (
                f"interaction {other.turn} answers the same question with {other.value!r}, "
                f"which turn {other.said_in} said later"
            )
    return None


def _outdated(
    question: _Question, questions: Sequence[_Question], said_in: int, turns: Turns
) -> str | None:
    """Another fact lists this value as one that it replaced, before this question."""
    value = value_words(question.value)
    for other in _others(question, questions):
        if value not in map(value_words, other.outdated) or not _same_subject(
            question, other, turns
        ):
            continue
        if said_in < other.said_in < question.turn:
            return (
                f"{other.value!r} replaced it in turn {other.said_in}, as interaction "
                f"{other.turn} says in `outdated`"
            )
        for turn in range(said_in + 1, question.turn + 1):
            query = turns[turn]["query"]
            told = contains_value(query, other.value) and not any(
                contains_value(each["query"], other.value) for each in turns[:turn]
            )
            if told and (says_change(query) or content(query) & content(question.query)):
                return (
                    f"{other.value!r} replaced it in turn {turn}, as interaction "
                    f"{other.turn} says in `outdated`"
                )
    return None


def _same_subject(question: _Question, other: _Question, turns: Turns) -> bool:
    """False where the value belongs to something else as well: a cat may have the dog's old
    name."""
    own = content(question.query) - content(other.query) - content(turns[other.said_in]["query"])
    told = [
        turn["query"]
        for turn in turns[: question.turn]
        if contains_value(turn["query"], question.value)
    ]
    return not any(own & content(query) for query in told)


def _retold(question: _Question, questions: Sequence[_Question], turns: Turns) -> str | None:
    """A later statement repeats the one that told the value, with another in its place."""
    said = clauses([turn["query"] for turn in turns[: question.turn]])
    known = [
        value
        for each in questions
        for value in (each.value, *each.outdated)
        if value_words(value) != value_words(question.value)
    ]
    clause = replacement(said, question.value, question.query, known)
    # An answer in the turn of the change only speaks of it; one in a later turn says the value
    # again.
    if clause is None or any(
        contains_value(turn["answer"], question.value)
        for turn in turns[clause.turn + 1 : question.turn]
    ):
        return None
    return f"turn {clause.turn} says {clause.written!r}"


def _others(question: _Question, questions: Sequence[_Question]) -> list[_Question]:
    """Questions of other turns for other values, none of which this turn asks for as well."""
    here = {value_words(each.value) for each in questions if each.turn == question.turn}
    asked_with = {
        each.turn for each in questions if value_words(each.value) == value_words(question.value)
    }
    return [
        each
        for each in questions
        if each.turn != question.turn
        and each.turn not in asked_with
        and value_words(each.value) not in here
    ]
