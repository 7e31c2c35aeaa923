"""Retention figures of played conversations: what was recalled, how cleanly, and how sure a figure
is.

Per question, the answer is compared with the values asked for
(`reward_service/components/recall.py`). Each figure is a sum of hits over a sum of counts, kept per
conversation, so that an interval can be had by drawing conversations anew: turns of one
conversation share a memory and are not independent.

Distance is the turn that asks minus the turn that last said the value; a question for several
values counts in `exact`, `precision` and `outdated` at the largest of theirs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.episode import Episode, Row, Turn
from common.failures import DataFailure
from common.text.values import contains_value, value_words
from learner.evaluation.intervals import bootstrap, wilson
from reward_service.components.recall import (
    Words,
    conversation_values,
    values_named,
    words_of_values,
)

Share = dict[str, float]
"""A share by key (a distance or an order, as a string), "all" over all of them."""
Interval = tuple[float, float]

FIGURES = ("recall", "exact", "precision", "changed", "outdated", "by_order")


@dataclass(frozen=True, slots=True)
class Figure:
    """Hits and counts of one share, by key and conversation: int64 [conversations] each."""

    hits: Mapping[str, np.ndarray]
    counts: Mapping[str, np.ndarray]

    def share(self) -> Share:
        """Keys that nothing counts for are left out."""
        counts = self.totals()
        return {key: int(self.hits[key].sum()) / count for key, count in counts.items()}

    def totals(self) -> dict[str, int]:
        """Denominator of the share of each key."""
        totals = {key: int(count.sum()) for key, count in self.counts.items()}
        return {key: totals[key] for key in sorted(totals, key=_in_order) if totals[key]}

    def intervals(self) -> dict[str, Interval]:
        """95 % intervals of `share`, over conversations (learner/evaluation/intervals.py).

        Draws of nothing but hits, or misses, all look alike: there the score interval of as many
        conversations as ask says how little few of them tell.
        """
        keys = list(self.totals())
        if not keys:
            return {}
        hits, counts = (np.stack([of[key] for key in keys]) for of in (self.hits, self.counts))
        found = {}
        for key, low, high in zip(keys, *bootstrap(hits, counts), strict=True):
            share = self.hits[key].sum() / self.counts[key].sum()
            asking = int(np.count_nonzero(self.counts[key]))
            found[key] = wilson(int(share), asking) if share in (0, 1) else (low, high)
        return found


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of an evaluation."""

    figures: dict[str, Figure]
    """Each of FIGURES with memory kept."""
    erased: Figure
    """Recall with memory erased before every question."""
    episodes: list[Episode]
    """The conversations with memory kept."""

    @property
    def counts(self) -> dict[str, int]:
        """Facts asked for, by distance."""
        return self.figures["recall"].totals()


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


def _in_order(key: str) -> tuple[bool, int]:
    return key == "all", int(key) if key != "all" else 0
