"""Running mean and spread of reward components, and the terms that follow from them. Pure:
statistics go in and come out.

Components with `normalise` count in standard deviations from their mean, so that components of
other ranges (retention between 0 and 1, a reward model's score between -5 and 5) can be mixed by
weight. What counts is what earlier iterations saw: within one iteration every turn is measured
alike, whichever worker scores it and when. The statistics go with the checkpoint.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from common.config.components import Component
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, RewardTerm
from reward_service.components.table import component_of

SMALLEST_STD = 1e-6
"""A component that varies less is taken as it is: dividing by its spread would blow up rounding."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of the values of one component so far."""

    count: int
    mean: float
    squares: float
    """Sum of squared deviations from the mean."""

    @property
    def std(self) -> float:
        """Standard deviation of the population, as in lm-human-preferences (Ziegler 2019): gain = 1
        / std, bias = -gain · mean."""
        std = math.sqrt(self.squares / self.count) if self.count else 0.0
        return std if std > SMALLEST_STD else 1.0

    def with_values(self, values: np.ndarray) -> Moments:
        """Merged with further values (Chan 1979): as if all had been seen at once."""
        if not len(values):
            return self
        count, mean = len(values), float(np.mean(values))
        squares = float(np.sum((values - mean) ** 2))
        total = self.count + count
        apart = mean - self.mean
        return Moments(
            total,
            self.mean + apart * count / total,
            self.squares + squares + apart**2 * self.count * count / total,
        )


Statistics = Mapping[str, Moments]
"""By name of the component; absent before the first iteration has ended."""


def after(
    statistics: Statistics, episodes: Iterable[Episode], rewards: Rewards
) -> dict[str, Moments]:
    """Statistics once `episodes` were seen too. Only components that are normalised are counted;
    order matters to rounding alone."""
    names = {
        name
        for mix in rewards.mixes().values()
        for name, component in mix.components().items()
        if component.normalise
    }
    seen: dict[str, list[float]] = {name: [] for name in sorted(names)}
    for episode in episodes:
        for turn in episode.answered:
            if turn.reward is not None:
                for name in seen.keys() & turn.rewards.keys():
                    term = turn.terms[name]
                    seen[name].append(min(max(turn.rewards[name], term.low), term.high))
    empty = Moments(0, 0.0, 0.0)
    return {
        name: statistics.get(name, empty).with_values(np.array(values))
        for name, values in seen.items()
    }


def to_json(statistics: Statistics) -> dict[str, Any]:
    return {name: list(astuple(moments)) for name, moments in statistics.items()}


def from_json(state: Mapping[str, Any]) -> dict[str, Moments]:
    return {
        name: Moments(int(count), float(mean), float(squares))
        for name, (count, mean, squares) in state.items()
    }


def recorded(episode: Episode) -> dict[str, Moments]:
    """Statistics that give the terms which an episode was scored with: to score it again."""
    terms = {name: term for turn in episode.answered for name, term in turn.terms.items()}
    return {name: Moments(1, term.mean, term.std**2) for name, term in terms.items()}


def terms_of(mix: RewardMix, statistics: Statistics) -> dict[str, RewardTerm]:
    """The term of each component of a mix."""
    terms = {}
    for name, component in mix.components().items():
        low, high = component.clip or (-math.inf, math.inf)
        moments = statistics.get(name) if component.normalise else None
        mean, std = (moments.mean, moments.std) if moments is not None else (0.0, 1.0)
        terms[name] = RewardTerm(component.weight, version_of(component), low, high, mean, std)
    return terms


@lru_cache(maxsize=256)
def version_of(component: Component) -> str:
    """Eight digits that change with what decides raw values: settings, and what the component reads
    beside them."""
    parts = [
        type(component).__name__,
        component.model_dump_json(exclude={"weight", "clip", "normalise"}),
    ]
    source = component_of(component).source
    if source is not None and (path := source.path(component)) is not None:
        parts.append(source.digest(path) or "")
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=4).hexdigest()
