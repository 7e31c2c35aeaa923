"""Figures of an evaluation: a share or mean by key, with its counts and 95 % intervals. Pure.

A figure keeps its sums per conversation, so that an interval can be had by drawing conversations
anew: turns of one conversation share a memory and are not independent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.episode import Episode
from learner.evaluation.intervals import bootstrap, wilson

ONE_BY_ONE = 16
"""Distances and turns up to which each has a key of its own."""
FEW = 10
"""Conversations below which draws of them alone say too little."""
Share = dict[str, float]
"""A share or mean by key (a distance, an order, a turn, a component), "all" over all of them."""
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Figure:
    """Hits and counts of one share, by key and conversation: [conversations] each."""

    hits: Mapping[str, np.ndarray]
    """float64: a hit may be a fraction or a reward."""
    counts: Mapping[str, np.ndarray]
    bounded: bool = True
    """Whether each hit lies between 0 and 1."""

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


class Sums:
    """Hits and counts as they come, of conversations whose turns may come in parts."""

    def __init__(self, conversations: int):
        self._conversations = conversations
        self._hits: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
        self._counts: dict[str, dict[str, np.ndarray]] = defaultdict(dict)

    def add(self, name: str, conversation: int, key: str, hit: float, count: int = 1) -> None:
        """Add to the figure `name` what a conversation has for a key."""
        if key not in self._hits[name]:
            self._hits[name][key] = np.zeros(self._conversations)
            self._counts[name][key] = np.zeros(self._conversations, np.int64)
        self._hits[name][key][conversation] += hit
        self._counts[name][key][conversation] += count

    def figure(self, name: str, bounded: bool = True) -> Figure:
        return Figure(self._hits[name], self._counts[name], bounded)


def in_powers(number: int) -> str:
    """The key of a distance or a turn: its own up to ONE_BY_ONE, then "17-32", "33-64", …"""
    if number <= ONE_BY_ONE:
        return str(number)
    above = 2 ** (number - 1).bit_length()
    return f"{above // 2 + 1}-{above}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of an evaluation. Both dictionaries have the figures of `evaluate.figures_of`."""

    figures: dict[str, Figure]
    """With memory kept."""
    erased: dict[str, Figure]
    """With memory erased before every query."""
    episodes: list[Episode]
    """The conversations with memory kept, each up to the end of its first part."""

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
    first = key.partition("-")[0]
    return key in ("all", "total"), int(first) if first.isdecimal() else 0, key
