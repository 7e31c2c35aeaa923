"""Advantage actor-critic (A2C; Mnih et al. 2016, arXiv 1602.01783): a critic as in PPO, and neither
ratio nor clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common.config.algorithms import A2C
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.policies.protocol import TokenBatch
from learner.rl.algorithms.algorithm import (
    critic_credit,
    critic_needs,
    value_figures,
)
from learner.rl.algorithms.terms import penalty_terms, score_function_term
from learner.rl.experience import Experience


class AdvantageActorCritic:
    """The gradient of an answer's log-probability, times its advantage."""

    def __init__(self, settings: A2C, reward_width: float = 1.0):
        self.needs = critic_needs(settings)
        self._settings = settings

    def credit(self, experience: Experience, places: list[int], group: Group) -> Experience:
        return critic_credit(experience, self._settings, group)

    def terms(
        self, batch: TokenBatch, experience: Experience, kl_coefficient: float
    ) -> list[LossTerm]:
        return [
            score_function_term("a2c/loss_policy", batch, experience, self._settings),
            *penalty_terms(batch, experience, self._settings, kl_coefficient),
        ]

    def critic_terms(self, values: Tensor, experience: Experience) -> list[LossTerm]:
        """Half the squared error, as PPO's."""
        _, returns, scored = experience.valued
        errors = torch.where(scored, 0.5 * (values - returns).square(), 0.0)
        return [
            LossTerm("critic/loss", errors.sum(), float(scored.sum())),
            *value_figures(values, experience),
        ]

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None: ...
