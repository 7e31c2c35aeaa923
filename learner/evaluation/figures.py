"""Figures of an evaluation: a share or mean by key, with its counts and 95 % intervals. Pure.

A figure keeps its sums per conversation, so that an interval can be had by drawing conversations
anew: turns of one conversation share a memory and are not independent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.episode import Episode
from learner.evaluation.intervals import bootstrap, wilson

FEW = 10
"""Conversations below which draws of them alone say too little."""
Share = dict[str, float]
"""A share or mean by key (a distance, an order, a turn, a component), "all" over all of them."""
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Figure:
    """Hits and counts of one share, by key and conversation: [conversations] each."""

    hits: Mapping[str, np.ndarray]
    """int64, or float64 where a hit is a fraction or a reward."""
    counts: Mapping[str, np.ndarray]
    bounded: bool = True
    """Whether each hit lies between 0 and 1."""

    @classmethod
    def of(
        cls,
        conversations: Iterable[Iterable[tuple[str, float]]],
        bounded: bool = True,
    ) -> Figure:
        """From (key, hit) of each observation of each conversation."""
        held = list(conversations)
        hits: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(held)))
        counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(held), np.int64))
        for index, observations in enumerate(held):
            for key, hit in observations:
                hits[key][index] += hit
                counts[key][index] += 1
        return cls(hits, counts, bounded)

    def share(self) -> Share:
        """Keys that nothing counts for are left out."""
        return {key: float(self.hits[key].sum()) / count for key, count in self.totals().items()}

    def totals(self) -> dict[str, int]:
        """Denominator of the share of each key."""
        totals = {key: int(count.sum()) for key, count in self.counts.items()}
        return {key: totals[key] for key in sorted(totals, key=_in_order) if totals[key]}

    def intervals(self) -> dict[str, Interval]:
        """95 % intervals of `share`, over conversations (learner/evaluation/intervals.py).

        Draws of nothing but hits, or misses, all look alike, and so may those of a few
        conversations: there the score interval of as many conversations as ask says how little
        they tell.
        """
        keys = list(self.totals())
        if not keys:
            return {}
        hits, counts = (np.stack([of[key] for key in keys]) for of in (self.hits, self.counts))
        found = {}
        for key, low, high in zip(keys, *bootstrap(hits, counts), strict=True):
            share = self.hits[key].sum() / self.counts[key].sum()
            asking = int(np.count_nonzero(self.counts[key]))
            if self.bounded and (share in (0, 1) or asking < FEW):
                few = wilson(float(share), asking)
                low, high = few if share in (0, 1) else (min(low, few[0]), max(high, few[1]))
            found[key] = (low, high)
        return found


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of an evaluation. Both dictionaries have the figures of `evaluate.figures_of`."""

    figures: dict[str, Figure]
    """With memory kept."""
    erased: dict[str, Figure]
    """With memory erased before every query."""
    episodes: list[Episode]
    """The conversations with memory kept."""

    @property
    def counts(self) -> dict[str, int]:
        """Facts asked for, by distance."""
        return self.figures["recall"].totals()


Named = Mapping[str, Any]
"""Figures by name, or by several names, one within the other."""


def figures_json(figures: Named) -> dict[str, Any]:
    """Shares of each figure by key; their 95 % intervals and counts stand under "intervals" and
    "counts", by the same names."""
    return {
        **_each(figures, Figure.share),
        "intervals": _each(figures, Figure.intervals),
        "counts": _each(figures, Figure.totals),
    }


def _each(figures: Named, read: Callable[[Figure], Any]) -> dict[str, Any]:
    return {
        name: read(figure) if isinstance(figure, Figure) else _each(figure, read)
        for name, figure in figures.items()
    }


def _in_order(key: str) -> tuple[bool, int, str]:
    """Numbers by their value, then names; what is over all keys comes last."""
    return key in ("all", "total"), int(key) if key.isdecimal() else 0, key
