"""Retention figures of played conversations: what was recalled, how cleanly, and how sure a figure
is.

Per question, the answer is compared with the values asked for
(`reward_service/components/recall.py`).

Distance is the turn that asks minus the turn that last said the value; a question for several
values counts in `exact`, `precision` and `outdated` at the largest of theirs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from common.episode import Episode, Row, Turn
from common.failures import DataFailure
from common.text.values import contains_value, value_words
from learner.evaluation.figures import Figure
from reward_service.components.recall import (
    Words,
    conversation_values,
    values_named,
    words_of_values,
)

FIGURES = ("recall", "exact", "precision", "changed", "outdated", "by_order")


def retention_figures(
    episodes: Sequence[Episode], known_values: Collection[str] = ()
) -> dict[str, Figure]:
    """Every one of FIGURES over whole episodes.

    recall: facts named, of facts asked for. exact: questions whose answer names every value asked
    for and no wrong one. precision: right values, of right and wrong values named. changed: as
    recall, of facts that replaced an earlier value. outdated: answers that name a replaced value,
    of questions for such facts. by_order: recall by the order in which the conversation told its
    facts, from "1".

    known_values: values that a wrong answer may hold, besides those of the conversation itself.
    Raises DataFailure naming an episode that was not played to its end.
    """
    everywhere = words_of_values(known_values)
    size = len(episodes)
    hits, counts = ({name: _zeros(size) for name in FIGURES} for _ in range(2))
    for index, episode in enumerate(episodes):
        if episode.status == "failed":
            raise DataFailure(
                f"episode {episode.id} could not be played: {episode.turns[-1].failure}"
            )
        known = words_of_values(conversation_values(episode.turns)) | everywhere
        for name, key, hit, count in _seen(episode.turns, known):
            for each in (key, "all"):
                hits[name][each][index] += hit
                counts[name][each][index] += count
    return {name: Figure(hits[name], counts[name]) for name in FIGURES}


def _seen(turns: Sequence[Turn], known: Collection[Words]) -> Iterable[tuple[str, str, int, int]]:
    """(figure, key, hits, counts) of each question."""
    for turn_number, turn in enumerate(turns):
        if turn_number == 0 or not turn.facts:
            continue
        right, wrong = values_named(turn, known)
        asked = {value_words(fact.value) for fact in turn.facts}
        farthest = str(turn_number - min(fact.said_in for fact in turn.facts))
        yield "exact", farthest, int(right == asked and not wrong), 1
        yield "precision", farthest, len(right), len(right) + len(wrong)
        replaced = {value_words(value) for fact in turn.facts for value in fact.outdated}
        if replaced:
            yield "outdated", farthest, int(bool(replaced & wrong)), 1
        for fact in turn.facts:
            hit, distance = int(value_words(fact.value) in right), str(turn_number - fact.said_in)
            yield "recall", distance, hit, 1
            if fact.outdated:
                yield "changed", distance, hit, 1
            order = order_of_telling(turns[:turn_number], fact.value)
            if order is not None:
                yield "by_order", str(order), hit, 1


def order_of_telling(turns: Sequence[Turn], value: str) -> int | None:
    """Which of the turns that tell something told the value last, counted from 1; None where the
    value stands in none of them, because it follows from what was said."""
    order, found = 0, None
    for turn in turns:
        if turn.role in ("remember", "act"):
            order += 1
            if contains_value(turn.query, value):
                found = order
    return found


def most_frequent_figure(values: Mapping[str, int], rows: Iterable[Row]) -> Figure:
    """Recall of always answering the value that is asked for most. values: how often each is."""
    guess = min(values, key=lambda value: (-values[value], value), default="")
    held = list(rows)
    hits, counts = _zeros(len(held)), _zeros(len(held))
    for index, row in enumerate(held):
        for turn_number, turn in enumerate(row.turns):
            for fact in turn.facts if turn_number else ():
                for key in (str(turn_number - fact.said_in), "all"):
                    hits[key][index] += contains_value(guess, fact.value)
                    counts[key][index] += 1
    return Figure(hits, counts)


def _zeros(conversations: int) -> defaultdict[str, np.ndarray]:
    return defaultdict(lambda: np.zeros(conversations, np.int64))
