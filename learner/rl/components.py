"""Rewards of turns taken apart into their components, for algorithms that normalise each by
itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from learner.parallel.group import Group
from learner.rl.experience import Experience

NOWHERE = ""
"""Name of a component that no turn of this rank has."""


@dataclass(frozen=True)
class ComponentRewards:
    """One component, [episodes, actions] in float64, of this rank."""

    rewards: Tensor
    """Clipped and normalised as its term says, without its weight; 0 where it does not apply."""
    weights: Tensor
    """Weight of the component where it next applies, from an action on; 0 where it no longer
    does."""


def each_component(experience: Experience, group: Group) -> Iterator[ComponentRewards]:
    """Every component that a scored turn of the whole batch has, in an order that is the same on
    all ranks. All ranks iterate together."""
    names = {
        name
        for episode in experience.episodes
        for turn in episode.answered
        if turn.reward is not None
        for name in turn.terms
    }
    waiting = {_digest(name): name for name in names}
    while True:
        # The largest that any rank still has: a rank may hold no turn that a component applies to.
        largest = torch.tensor([max(waiting, default=-1)], device=group.device)
        chosen = int(group.max(largest))
        if chosen < 0:
            return
        yield _rewards_of(experience, waiting.pop(chosen, NOWHERE))


def _digest(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=7).digest())


def _rewards_of(experience: Experience, name: str) -> ComponentRewards:
    shape, device = experience.present.shape, experience.present.device
    rewards, weights = np.zeros(shape), np.zeros(shape)
    for i, episode in enumerate(experience.episodes):
        actions = episode.actions
        for k in reversed(range(len(actions))):
            if k + 1 < len(actions):
                weights[i, k] = weights[i, k + 1]
            turn = episode.turns[actions[k].turn]
            term = turn.terms.get(name)
            if term is not None and actions[k].answers and turn.reward is not None:
                rewards[i, k] = term.values(np.array(turn.rewards[name]))
                weights[i, k] = term.weight
    return ComponentRewards(*(torch.from_numpy(table).to(device) for table in (rewards, weights)))
