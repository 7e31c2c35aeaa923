"""The learner's half of reinforcement learning in one process: credit for episodes, then an
update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.config.mrl import MRL
from common.episode import Episode
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from learner.metrics import record_kl
from learner.rl.experience import Experience
from tests.updates import make_update


class LocalLearner:
    """One rank that owns `policy`, and a critic that starts as `critic`. Gradients are clipped
    alike."""

    def __init__(
        self,
        policy: ReactiveTransformer,
        critic: Critic | None,
        reference: ReactiveTransformer,
        stage: MRL,
        temperature: float = 1.0,
        reward_width: float = 1.0,
        steps: int = 1,
    ):
        self.parts = make_update(
            policy,
            stage,
            reference,
            critic,
            temperature=temperature,
            seed=0,
            steps=steps,
            reward_width=reward_width,
        )
        self.policy, self.critic, self.iteration = policy, self.parts.modules.get("critic"), 0
        if self.parts.critic_trainer is not None:
            norm = {"max_grad_norm": stage.optimizer.max_grad_norm}
            rates = self.parts.critic_trainer.settings
            self.parts.critic_trainer.settings = rates.model_copy(update=norm)

    def credit(self, episodes: Sequence[Episode]) -> Experience:
        return self.parts.evaluate(list(episodes), list(range(len(episodes))))

    def update(self, experience: Experience) -> dict[str, float]:
        """All epochs and minibatches; figures by metric name."""
        count, update = len(experience.episodes), self.parts
        update.kl.update(record_kl(experience, update.group, update.metrics), count)
        update.metrics.record("ppo/kl_coefficient", update.kl.coefficient)
        update.run(experience, list(range(count)), count, self.iteration)
        self.iteration += 1
        return experience.figures | update.metrics.flush(self.iteration, "mrl")

    def gradients(self) -> dict[str, Tensor]:
        """Those of the last step, by parameter name; zeros where a parameter has none."""
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for module, prefix in ((self.policy, "policy"), (self.critic, "critic"))
            if module is not None
            for name, p in module.named_parameters(prefix)
        }
