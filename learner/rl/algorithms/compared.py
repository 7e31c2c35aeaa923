"""Credit by comparison with the other episodes of a task, which RLOO and GRPO have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from common.config.algorithms import Compared
from learner.parallel.group import Group
from learner.rl.algorithms.algorithm import finish_advantages
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
    # What is written last, for another episode, has nothing to be credited with.
    whole = ((experience.scored == experience.present) | experience.unpaid).all(1)
    found = compare(
        returns,
        scored,
        whole,
        places,
        settings.samples,
        settings.incomplete == "leave_out",
        group,
    )
    kept = found.kept & experience.scored
    advantages = advantages_of(returns.double(), found).to(returns.dtype)
    learnt = replace(experience, scored=kept)
    advantages, figures = finish_advantages(
        torch.where(kept, advantages, 0.0), learnt, settings, group
    )
    returns = torch.where(kept, returns, 0.0)
    return replace(learnt, advantages=advantages, returns=returns, figures=figures | found.figures)
