"""Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300, eq. 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.config.algorithms import GRPO
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.policies.protocol import TokenBatch
from learner.rl.algorithms.algorithm import Needs
from learner.rl.algorithms.compared import compared_credit
from learner.rl.algorithms.terms import penalty_terms, surrogate_terms
from learner.rl.experience import Experience
from learner.rl.groups import Comparison

LEAST_STD = 1e-4
"""Added to a standard deviation: returns that are nearly alike are no strong signal."""


class GroupRelative:
    """Returns less the mean of their task, over their standard deviation."""

    def __init__(self, settings: GRPO, reward_width: float = 1.0):
        self.needs = Needs(settings.samples)
        self._settings = settings

    def credit(self, experience: Experience, places: list[int], group: Group) -> Experience:
        return compared_credit(experience, places, self._settings, group, self._relative)

    def _relative(self, returns: Tensor, found: Comparison) -> Tensor:
        difference = returns - found.mean
        return difference / (found.std + LEAST_STD) if self._settings.divide_by_std else difference

    def terms(
        self, batch: TokenBatch, experience: Experience, kl_coefficient: float
    ) -> list[LossTerm]:
        settings = self._settings
        return [
            *surrogate_terms(
                "grpo/loss_policy",
                batch,
                experience,
                settings.loss_mean,
                (settings.clip, settings.clip_high),
                "answer_mean" if settings.ratio == "answer" else "token",
            ),
            *penalty_terms(batch, experience, settings, kl_coefficient),
        ]

    def critic_terms(self, values: Tensor, experience: Experience) -> list[LossTerm]:
        raise NotImplementedError("GRPO has no critic")

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None: ...
