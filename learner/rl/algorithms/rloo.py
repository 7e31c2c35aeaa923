"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740, eq. 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.config.algorithms import RLOO
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.policies.protocol import TokenBatch
from learner.rl.algorithms.algorithm import Needs
from learner.rl.algorithms.compared import compared_credit
from learner.rl.algorithms.grpo import LEAST_STD
from learner.rl.algorithms.terms import penalty_terms, score_function_term, surrogate_terms
from learner.rl.experience import Experience
from learner.rl.groups import Comparison


class LeaveOneOut:
    """The baseline of an episode is the mean return of the others of its task."""

    def __init__(self, settings: RLOO, reward_width: float = 1.0):
        self.needs = Needs(settings.samples)
        self._settings = settings

    def credit(self, experience: Experience, places: list[int], group: Group) -> Experience:
        settings = self._settings
        rule = over_spread if settings.aggregation == "normalise_then_sum" else less_the_others
        return compared_credit(experience, places, settings, group, rule)

    def terms(
        self, batch: TokenBatch, experience: Experience, kl_coefficient: float
    ) -> list[LossTerm]:
        settings, name = self._settings, "rloo/loss_policy"
        if settings.ratio == "none":
            policy = [score_function_term(name, batch, experience, settings)]
        else:
            clip, mean = (settings.clip, settings.clip_high), settings.loss_mean
            policy = surrogate_terms(name, batch, experience, mean, clip, settings.ratio)
        return [*policy, *penalty_terms(batch, experience, settings, kl_coefficient)]

    def critic_terms(self, values: Tensor, experience: Experience) -> list[LossTerm]:
        raise NotImplementedError("RLOO has no critic")

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None: ...


def less_the_others(returns: Tensor, found: Comparison) -> Tensor:
    """Each return less the mean of the others of its group: n / (n - 1) times its distance from
    the mean of all n."""
    return (returns - found.mean) * found.count / (found.count - 1).clamp(min=1)


def over_spread(returns: Tensor, found: Comparison) -> Tensor:
    """The same over the standard deviation of the group."""
    return less_the_others(returns, found) / (found.std + LEAST_STD)
