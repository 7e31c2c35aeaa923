"""PPO: a ratio per token, an advantage per answer or per token, a critic (Schulman et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.config.algorithms import PPO
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.policies.protocol import TokenBatch
from learner.rl.algorithms.algorithm import critic_credit, critic_needs, value_figures
from learner.rl.algorithms.terms import penalty_terms, surrogate_terms
from learner.rl.experience import Experience
from learner.rl.losses import value_loss


class ProximalPolicyOptimization:
    """reward_width: of the range that rewards lie in; values are clipped to a share of it."""

    def __init__(self, settings: PPO, reward_width: float = 1.0):
        self.needs = critic_needs(settings)
        self._settings, self._reward_width = settings, reward_width

    def credit(self, experience: Experience, places: list[int], group: Group) -> Experience:
        return critic_credit(experience, self._settings, group)

    def terms(
        self, batch: TokenBatch, experience: Experience, kl_coefficient: float
    ) -> list[LossTerm]:
        settings = self._settings
        clip = settings.clip, settings.clip_high
        return [
            *surrogate_terms("ppo/loss_policy", batch, experience, settings.loss_mean, clip),
            *penalty_terms(batch, experience, settings, kl_coefficient),
        ]

    def critic_terms(self, values: Tensor, experience: Experience) -> list[LossTerm]:
        old, returns, scored = experience.valued
        clip = self._settings.value_clip * self._reward_width
        loss = value_loss(values, old, returns, scored, clip)
        turns = float(loss.turns)
        return [
            LossTerm("critic/loss", loss.loss, turns),
            LossTerm("ppo/value_clip_fraction", loss.clipped.float(), turns, 0.0),
            *value_figures(values, experience),
        ]

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None: ...
