"""The learner's half of PPO in one process, as tests need it: credit for episodes, then an update.

All that these tests know of the interfaces of `learner.rl` stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.config.stages import MRL, Optimizer
from common.episode import Episode
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from common.telemetry.metrics import Metrics
from learner.metrics import record_kl
from learner.parallel.group import OneRank
from learner.parallel.optimizer import Trainer
from learner.rl.experience import Experience, gather_experience
from learner.rl.kl import AdaptiveKL
from learner.rl.update import ppo_update


def settings(ppo: dict[str, Any], **more: Any) -> MRL:
    steps = [{"name": "all", "iterations": 1, "max_steps": 9}]
    return MRL.model_validate({"stage": "mrl", "curriculum": steps, "ppo": ppo} | more)


class PPOLearner:
    """One rank that owns `policy` and `critic` and changes them."""

    def __init__(
        self,
        policy: ReactiveTransformer,
        critic: Critic,
        reference: ReactiveTransformer,
        stage: MRL,
        temperature: float = 1.0,
        reward_width: float = 1.0,
        steps: int = 1,
    ):
        self.policy, self.critic, self.reference, self.stage = policy, critic, reference, stage
        self.temperature, self.reward_width = temperature, reward_width
        self.group, self.metrics, self.iteration = OneRank(), Metrics(), 0
        self.policy_trainer = Trainer(
            {"policy": policy},
            stage.optimizer,
            steps,
            self.group,
            lambda name: not (stage.freeze_encoder and name.startswith("policy.encoder.")),
        )
        rates = Optimizer(
            learning_rate=stage.ppo.critic_learning_rate,
            warmup_fraction=0.0,
            final_fraction=1.0,
            max_grad_norm=stage.optimizer.max_grad_norm,
        )
        self.critic_trainer = Trainer({"critic": critic}, rates, steps, self.group)
        self.kl = AdaptiveKL(stage.ppo.kl, stage.ppo.kl_target, stage.ppo.kl_horizon)

    def credit(self, episodes: Sequence[Episode]) -> Experience:
        return gather_experience(
            list(episodes),
            self.policy,
            self.reference,
            self.critic,
            self.stage.ppo,
            self.temperature,
            self.group,
        )

    def update(self, experience: Experience) -> dict[str, float]:
        """All epochs and minibatches; figures by metric name."""
        count = len(experience.episodes)
        self.kl.update(record_kl(experience, self.group, self.metrics), count)
        self.metrics.record("ppo/kl_coefficient", self.kl.coefficient)
        ppo_update(
            experience, list(range(count)), count, self.policy, self.critic,
            self.policy_trainer, self.critic_trainer, self.kl, self.stage, self.temperature,
            0, self.iteration, self.group, self.metrics, self.reward_width,
        )  # fmt: skip
        self.iteration += 1
        return experience.figures | self.metrics.flush(self.iteration, "mrl")

    def gradients(self) -> dict[str, Tensor]:
        """Those of the last step, by parameter name; zeros where a parameter has none."""
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for module, prefix in ((self.policy, "policy"), (self.critic, "critic"))
            for name, p in module.named_parameters(prefix)
        }
