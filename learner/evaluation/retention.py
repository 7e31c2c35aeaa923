"""Retention figures of played conversations: what was recalled, how cleanly, and how sure a figure
is.

Per question, the answer is compared with the values asked for
(`reward_service/components/recall.py`).

Distance is the turn that asks minus the turn that last said the value; a question for several
values counts in `exact`, `precision` and `outdated` at the largest of theirs. Distances beyond 16
count together by powers of two (`in_powers`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from common.episode import Episode, Interaction, Row, Turn
from common.text.values import contains_value, value_words
from learner.evaluation.figures import Figure, Sums, in_powers
from learner.evaluation.parts import Part, whole
from reward_service.components.recall import (
    Words,
    conversation_values,
    values_named,
    words_of_values,
)

FIGURES = ("recall", "exact", "precision", "changed", "outdated", "by_order", "held")


def retention_figures(
    episodes: Sequence[Episode], known_values: Collection[str] = ()
) -> dict[str, Figure]:
    """Every one of FIGURES over whole episodes.

    recall: facts named, of facts asked for. exact: questions whose answer names every value asked
    for and no wrong one. precision: right values, of right and wrong values named. changed: as
    recall, of facts that replaced an earlier value. outdated: answers that name a replaced value,
    of questions for such facts. by_order: recall by the order in which the conversation told its
    facts, from "1". held: recall by the number of turns before the question that told something,
    without those whose value was replaced since.

    known_values: values that a wrong answer may hold, besides those of the conversation itself.
    Raises DataFailure naming an episode that was not played to its end.
    """
    everywhere = words_of_values(known_values)
    sums = Sums(len(episodes))
    for part in whole(episodes):
        add_facts(sums, part, everywhere)
    return {name: sums.figure(name) for name in FIGURES}


def add_facts(sums: Sums, part: Part, everywhere: Collection[Words]) -> None:
    """Add each of FIGURES for the questions of a part. everywhere: `words_of_values` of the known
    values."""
    known = words_of_values(conversation_values(part.told)) | frozenset(everywhere)
    for name, key, hit, count in _seen(part, known):
        for each in (key, "all"):
            sums.add(name, part.conversation, each, hit, count)


def _seen(part: Part, known: Collection[Words]) -> Iterator[tuple[str, str, int, int]]:
    """(figure, key, hits, counts) of each question."""
    telling = [number for number, turn in enumerate(part.told) if turn.role == "remember"]
    replaced_in = _replaced_in(part.told)
    for turn_number, turn in part.answered:
        if not turn.facts:
            continue
        right, wrong = values_named(turn, known)
        asked = {value_words(fact.value) for fact in turn.facts}
        farthest = in_powers(turn_number - min(fact.said_in for fact in turn.facts))
        yield "exact", farthest, int(right == asked and not wrong), 1
        yield "precision", farthest, len(right), len(right) + len(wrong)
        replaced = {value_words(value) for fact in turn.facts for value in fact.outdated}
        if replaced:
            yield "outdated", farthest, int(bool(replaced & wrong)), 1
        told, gone = bisect_left(telling, turn_number), bisect_left(replaced_in, turn_number)
        for fact in turn.facts:
            hit = int(value_words(fact.value) in right)
            distance = in_powers(turn_number - fact.said_in)
            yield "recall", distance, hit, 1
            if fact.outdated:
                yield "changed", distance, hit, 1
            order = order_of_telling(part.told, turn_number, fact.value)
            if order is not None:
                yield "by_order", in_powers(order), hit, 1
            if told > gone:
                yield "held", in_powers(told - gone), hit, 1


def _replaced_in(told: Sequence[Interaction | Turn]) -> list[int]:
    """For each value that another one replaced, the first turn from which on a question says so,
    ascending."""
    first: dict[Words, int] = {}
    for turn in told:
        for fact in turn.facts:
            for value in fact.outdated:
                words = value_words(value)
                first[words] = min(first.get(words, fact.said_in), fact.said_in)
    return sorted(first.values())


def order_of_telling(turns: Sequence[Interaction | Turn], asked_in: int, value: str) -> int | None:
    """Which of the turns before `asked_in` that tell something told the value last, counted from 1;
    None where the value stands in none of them, because it follows from what was said."""
    telling = [number for number in range(asked_in) if turns[number].role in ("remember", "act")]
    for order in range(len(telling), 0, -1):
        if contains_value(turns[telling[order - 1]].query, value):
            return order
    return None


def most_frequent_figure(values: Mapping[str, int], rows: Iterable[Row]) -> Figure:
    """Recall of always answering the value that is asked for most. values: how often each is."""
    guess = min(values, key=lambda value: (-values[value], value), default="")
    held = list(rows)
    sums = Sums(len(held))
    for index, row in enumerate(held):
        for turn_number, turn in enumerate(row.turns):
            for fact in turn.facts if turn_number else ():
                for key in (in_powers(turn_number - fact.said_in), "all"):
                    sums.add("recall", index, key, contains_value(guess, fact.value))
    return sums.figure("recall")
