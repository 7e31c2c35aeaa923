"""PPO: a ratio per token, an advantage per interaction, a critic (Schulman et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.config.algorithms import PPO
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.policies.protocol import TokenBatch
from learner.rl.algorithms.algorithm import Needs, critic_credit, penalty_terms, value_figures
from learner.rl.experience import Experience
from learner.rl.losses import policy_loss, value_loss


class ProximalPolicyOptimization:
    """reward_width: of the range that rewards lie in; values are clipped to a share of it."""

    def __init__(self, settings: PPO, reward_width: float = 1.0):
        self.needs = Needs(
            settings.critic_learning_rate,
            settings.critic_warmup,
            settings.critic,
            stop_kl=settings.stop_kl,
            skip_log_ratio=settings.skip_log_ratio,
        )
        self._settings, self._reward_width = settings, reward_width

    def credit(self, experience: Experience, places: list[int], group: Group) -> Experience:
        return critic_credit(experience, self._settings, group)

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
            LossTerm("ppo/log_ratio", loss.log_ratio, tokens, 0.0),
            LossTerm("ppo/approx_kl", loss.approx_kl, tokens, 0.0),
            LossTerm("ppo/approx_kl_k3", loss.approx_kl_k3, tokens, 0.0),
        ]

    def critic_terms(self, values: Tensor, experience: Experience) -> list[LossTerm]:
        turns_of = (experience.values, experience.returns, experience.scored)
        old, returns, scored = (x[experience.present] for x in turns_of)
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
