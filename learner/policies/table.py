"""The policy of a checkpoint, whatever its kind: what plays with it, and what trains it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.config.causal import CausalModel
from common.config.environment import CONVERSATION, EnvironmentSettings
from common.config.model import PolicyKind
from common.config.mrl import MRL
from common.config.rollout import Rollout
from common.config.run import Learner
from common.data.causal_tokenizer import DIALOGUE
from common.data.tokenizer import SPECIAL_TOKENS
from common.storage.checkpoint import Checkpoint
from common.weights import PackedWeights, pack
from learner.checkpointing import checkpoint_model
from learner.lora import plain_state, take_plain
from learner.parallel.group import Group
from learner.policies.protocol import TrainablePolicy
from learner.policies.reactive import ReactivePolicy
from rollout.policies.table import PolicyShape, make_policy
from rollout.protocols import Policy

LEARNER = Learner()
"""Settings where a run has none."""


def _reactive(
    policy: CheckpointPolicy, settings: MRL, group: Group, learner: Learner
) -> TrainablePolicy:
    update = settings.algorithm_settings
    return ReactivePolicy(
        policy.module, group, update.bptt_turns, update.memory_change, settings.router_loss
    )


def _causal(
    policy: CheckpointPolicy, settings: MRL, group: Group, learner: Learner
) -> TrainablePolicy:
    from learner.policies.causal import CausalPolicy, adapted
    from learner.policies.trunk import trunk_of

    model = policy.causal
    assert model is not None, "a causal policy is trained with the settings of its model"
    module = adapted(policy.module, model).to(group.device)
    return CausalPolicy(
        module,
        policy.tokenizer.memory,
        group,
        model.value_head,
        micro_batch_tokens=learner.micro_batch_tokens,
        trunk=trunk_of(module, model),
    )


TRAINABLE: dict[PolicyKind, Callable[[CheckpointPolicy, MRL, Group, Learner], TrainablePolicy]] = {
    "reactive": _reactive,
    "causal": _causal,
}
"""By kind of `POLICIES`."""


@dataclass(frozen=True)
class CheckpointPolicy:
    kind: PolicyKind
    """Key of `POLICIES` and `TRAINABLE`."""
    module: Any
    """The model that `TRAINABLE` and `POLICIES` take, with its configuration."""
    tokenizer: Any
    """`ConversationTokenizer` or `CausalTokenizer`."""
    causal: CausalModel | None = None
    """Settings of the run's causal language model: adapters, value head. None: of no run, or of
    another kind."""

    @property
    def max_tokens(self) -> int:
        """Longest interaction."""
        if self.kind == "causal":
            return int(self.tokenizer.memory.max_tokens)
        return int(self.module.config.max_tokens)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that are no text."""
        if self.kind == "causal":
            return tuple(self.tokenizer.special_ids)
        return tuple(range(len(SPECIAL_TOKENS)))

    def shape(self) -> PolicyShape:
        """Description from which rollout workers make the policy. They get its weights later."""
        config = self.module.config
        model = (
            json.loads(config.to_json_string(use_diff=False))
            if self.kind == "causal"
            else config.to_dict()
        )
        return PolicyShape(self.kind, model, self.tokenizer.to_json())

    def trainable(self, settings: MRL, group: Group, learner: Learner = LEARNER) -> TrainablePolicy:
        """The same module as the learner trains it, on the group's device."""
        return TRAINABLE[self.kind](self, settings, group, learner)

    def weights(self, version: int) -> PackedWeights:
        """A snapshot of the weights as rollout workers take them: adapters are merged in."""
        return pack(plain_state(self.module) or self.module.state_dict(), version)

    def take(self, other: CheckpointPolicy) -> None:
        """Give the module the weights of another policy of the same shape."""
        take_plain(self.module, other.module.state_dict())

    def playing(
        self, rollout: Rollout, environment: EnvironmentSettings = CONVERSATION, version: int = 0
    ) -> Policy:
        """The policy in this process, on the CPU, with its weights as `version`."""
        policy = make_policy(self.shape(), rollout, environment)
        policy.load(self.weights(version))
        return policy


def open_policy(checkpoint: Checkpoint, causal: CausalModel | None = None) -> CheckpointPolicy:
    """causal: settings of the run that trains it on. Raises InputError where the checkpoint holds
    no policy."""
    with checkpoint.folder() as folder:
        if (folder / DIALOGUE).is_file():
            # Here and not at the top: it brings transformers, which takes seconds to import.
            from common.models.causal import load_causal

            return CheckpointPolicy("causal", *load_causal(checkpoint.where, folder), causal)
    return CheckpointPolicy("reactive", *checkpoint_model(checkpoint))
