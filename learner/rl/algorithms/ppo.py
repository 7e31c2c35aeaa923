"""PPO: a ratio per token, an advantage per interaction, a critic (Schulman et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from common.config.algorithms import PPO
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.policies.protocol import TokenBatch
from learner.rl.advantages import explained_variance, generalized_advantages
from learner.rl.algorithms.algorithm import Needs, finish_advantages, penalty_terms
from learner.rl.experience import Experience
from learner.rl.losses import policy_loss, value_loss


class ProximalPolicyOptimization:
    """reward_width: of the range that rewards lie in; values are clipped to a share of it."""

    def __init__(self, settings: PPO, reward_width: float = 1.0):
        self.needs = Needs(settings.critic_learning_rate, settings.critic_warmup)
        self._settings, self._reward_width = settings, reward_width

    def credit(self, experience: Experience, places: list[int], group: Group) -> Experience:
        settings, scored = self._settings, experience.scored
        advantages, returns = generalized_advantages(
            experience.rewards,
            experience.values,
            experience.bootstrap,
            settings.discount,
            settings.gae_lambda,
            scored,
        )
        advantages, figures = finish_advantages(advantages, experience, settings, group)
        explained = explained_variance(experience.values, returns, scored, group.sum)
        if explained is not None:
            figures["ppo/explained_variance"] = explained
        return replace(experience, advantages=advantages, returns=returns, figures=figures)

    def terms(
        self, batch: TokenBatch, experience: Experience, kl_coefficient: float
    ) -> list[LossTerm]:
        old = batch.flat([[turn.log_probs for turn in one.answered] for one in experience.episodes])
        advantages, scored = batch.spread(experience.advantages), batch.spread(experience.scored)
        loss = policy_loss(batch.log_probs, old, advantages, scored, self._settings.clip)
        tokens = float(loss.tokens)
        return [
            LossTerm("ppo/loss_policy", loss.loss, tokens),
            *penalty_terms(batch, experience, self._settings, kl_coefficient),
            LossTerm("ppo/clip_fraction", loss.clipped.float(), tokens, 0.0),
            LossTerm("ppo/approx_kl", loss.approx_kl, tokens, 0.0),
            LossTerm("ppo/approx_kl_k3", loss.approx_kl_k3, tokens, 0.0),
        ]

    def critic_terms(self, values: Tensor, experience: Experience) -> list[LossTerm]:
        turns_of = (experience.values, experience.returns, experience.scored)
        old, returns, scored = (x[experience.present] for x in turns_of)
        clip = self._settings.value_clip * self._reward_width
        loss = value_loss(values, old, returns, scored, clip)
        turns = float(loss.turns)
        seen = torch.where(scored, values.detach(), 0.0).sum()
        return [
            LossTerm("ppo/loss_value", loss.loss, turns),
            LossTerm("ppo/value_clip_fraction", loss.clipped.float(), turns, 0.0),
            LossTerm("ppo/values", seen, turns, 0.0),
            LossTerm("ppo/returns", torch.where(scored, returns, 0.0).sum(), turns, 0.0),
        ]

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None: ...
