"""Whether an answer names facts that nobody asked for: an old topic, leaked into a new one."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from common.config.components import Leak
from common.episode import Turn
from reward_service.comparison import Compared
from reward_service.components.component import RewardComponent
from reward_service.components.recall import Words, values_named, values_of_episodes


def leak_reward(turns: Iterable[Turn], values: Iterable[Collection[Words]]) -> np.ndarray:
    """-1 where the answer names a value of its conversation that neither its query nor its
    reference mentions, else 1: float64 [turns]. nan where the turn asks for a fact, or its
    conversation has no values, and the component does not apply.

    values: for each turn those of its conversation.
    """
    return np.array([_leak(*each) for each in zip(turns, values, strict=True)], dtype=np.float64)


def _leak(turn: Turn, values: Collection[Words]) -> float:
    if turn.facts or not values:
        return np.nan
    _, leaked = values_named(turn, values)
    return -1.0 if leaked else 1.0


def _score(section: Leak, compared: Compared) -> np.ndarray:
    values = compared.batch.once(values_of_episodes)
    return leak_reward(compared.turns, [values[each.turn] for each in compared.group])


LEAK = RewardComponent(Leak, _score, range=(-1.0, 1.0), may_not_apply=True)
