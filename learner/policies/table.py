"""The policy of a checkpoint, whatever its kind: what plays with it, and what trains it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.config.environment import CONVERSATION, EnvironmentSettings
from common.config.mrl import MRL
from common.config.rollout import Rollout
from common.data.tokenizer import ConversationTokenizer
from common.storage.checkpoint import Checkpoint
from common.weights import PackedWeights, pack
from learner.checkpointing import checkpoint_model
from learner.parallel.group import Group
from learner.policies.protocol import TrainablePolicy
from learner.policies.reactive import ReactivePolicy
from rollout.policies.table import PolicyShape, make_policy
from rollout.protocols import Policy

TRAINABLE: dict[str, Callable[..., TrainablePolicy]] = {"rxt": ReactivePolicy}
"""By kind of `POLICIES`; each is called as `ReactivePolicy` is."""


@dataclass(frozen=True)
class CheckpointPolicy:
    module: Any
    """The model that `TRAINABLE` and `POLICIES` take, with its configuration."""
    tokenizer: ConversationTokenizer

    @property
    def max_tokens(self) -> int:
        """Longest interaction."""
        return int(self.module.config.max_tokens)

    def shape(self) -> PolicyShape:
        """Description from which rollout workers make the policy. They get its weights later."""
        config = self.module.config
        return PolicyShape(config.model_type, config.to_dict(), self.tokenizer.to_json())

    def trainable(self, settings: MRL, group: Group) -> TrainablePolicy:
        """The same module as the learner trains it, on the group's device."""
        return TRAINABLE[self.module.config.model_type](
            self.module,
            group,
            settings.algorithm_settings.bptt_turns,
            settings.algorithm_settings.memory_change,
            settings.router_loss,
        )

    def weights(self, version: int) -> PackedWeights:
        return pack(self.module.state_dict(), version)

    def playing(
        self, rollout: Rollout, environment: EnvironmentSettings = CONVERSATION, version: int = 0
    ) -> Policy:
        """The policy in this process, on the CPU, with its weights as `version`."""
        policy = make_policy(self.shape(), rollout, environment)
        policy.load(self.weights(version))
        return policy


def open_policy(checkpoint: Checkpoint) -> CheckpointPolicy:
    """Raises InputError where the checkpoint holds no policy."""
    return CheckpointPolicy(*checkpoint_model(checkpoint))
