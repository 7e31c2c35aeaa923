"""Credit by comparison with the other episodes of a task, which RLOO and GRPO have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from common.config.algorithms import Compared
from learner.parallel.group import Group
from learner.rl.algorithms.algorithm import finish_advantages
from learner.rl.components import each_component
from learner.rl.experience import Experience
from learner.rl.groups import Comparison, compare, compared_returns


def compared_credit(
    experience: Experience,
    places: list[int],
    settings: Compared,
    group: Group,
    advantages_of: Callable[[Tensor, Comparison], Tensor],
) -> Experience:
    """The experience with advantages and without the turns that have nothing to be compared with.

    advantages_of: of returns in float64 and the statistics of their groups, [episodes, turns], or
    [episodes, 1] for whole episodes, all of whose turns get the same.
    """
    returns, scored = compared_returns(experience, settings.discount, settings.compare == "episode")
    found = _compared(experience, returns, scored, places, settings, group)
    kept = found.kept & experience.scored
    learnt = replace(experience, scored=kept)
    if settings.aggregation == "normalise_then_sum":
        exact = decoupled_advantages(experience, places, settings, group, advantages_of)
        advantages = torch.where(kept, exact.to(returns.dtype), 0.0)
        # Totals may be alike where components are not: what tells answers apart is the sum here.
        signal = replace(learnt, rewards=advantages)
    else:
        exact = advantages_of(returns.double(), found)
        advantages, signal = torch.where(kept, exact.to(returns.dtype), 0.0), learnt
    advantages, figures = finish_advantages(advantages, signal, settings, group)
    returns = torch.where(kept, returns, 0.0)
    return replace(learnt, advantages=advantages, returns=returns, figures=figures | found.figures)


def decoupled_advantages(
    experience: Experience,
    places: list[int],
    settings: Compared,
    group: Group,
    advantages_of: Callable[[Tensor, Comparison], Tensor],
) -> Tensor:
    """Weighted sum of the advantages of the components, each compared by itself, in float64:
    [episodes, turns], or [episodes, 1]. Steps 1 and 2 of group reward-decoupled normalisation (Liu
    et al. 2026, arXiv 2601.05242); step 3, over the batch, is whitening.

    A component counts where it applies to this turn or to one after it, which reaches it as credit,
    and adds nothing elsewhere. advantages_of: as in `compared_credit`, over the spread of the
    group.
    """
    by_episode = settings.compare == "episode"
    first = experience.scored.int().argmax(1, keepdim=True)
    total: Tensor | None = None
    for part in each_component(experience, group):
        alone = replace(experience, rewards=part.rewards)
        returns, scored = compared_returns(alone, settings.discount, by_episode)
        weights = part.weights.gather(1, first) if by_episode else part.weights
        applies = scored & (weights > 0)
        found = _compared(experience, returns, applies, places, settings, group)
        advantages = torch.where(found.kept, weights * advantages_of(returns, found), 0.0)
        total = advantages if total is None else total + advantages
    return torch.zeros_like(experience.rewards) if total is None else total


def _compared(
    experience: Experience,
    returns: Tensor,
    scored: Tensor,
    places: list[int],
    settings: Compared,
    group: Group,
) -> Comparison:
    # What is written last, for another episode, has nothing to be credited with.
    whole = ((experience.scored == experience.present) | experience.unpaid).all(1)
    leave_out = settings.incomplete == "leave_out"
    return compare(returns, scored, whole, places, settings.samples, leave_out, group)
