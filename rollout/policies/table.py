"""The policies there are. A new one is a folder beside this file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from common.config.environment import CONVERSATION, EnvironmentSettings
from common.config.model import PolicyKind
from common.config.rollout import Rollout
from rollout.policies.reactive.policy import ReactiveRolloutPolicy
from rollout.protocols import Policy


@dataclass(frozen=True, slots=True)
class PolicyShape:
    """Description from which any process makes a policy without weights."""

    kind: PolicyKind
    """Key of `POLICIES`."""
    model: dict[str, Any]
    """The model's configuration."""
    tokenizer: str
    """The tokenizer as JSON."""


def _causal(*arguments: Any) -> Policy:
    # Here and not at the top: it brings transformers, which takes seconds to import.
    from rollout.policies.causal.policy import causal_policy

    return causal_policy(*arguments)


POLICIES: dict[PolicyKind, Callable[..., Policy]] = {
    "reactive": ReactiveRolloutPolicy,
    "causal": _causal,
}
"""By kind (`Model.kind`). Each is called as `ReactiveRolloutPolicy` is."""


def make_policy(
    shape: PolicyShape,
    rollout: Rollout,
    environment: EnvironmentSettings = CONVERSATION,
    device: str = "cpu",
) -> Policy:
    """A policy that plays `rollout.slots` episodes at once, in the environments of a run. It has no
    weights yet (`load`)."""
    return POLICIES[shape.kind](
        shape.model,
        shape.tokenizer,
        rollout,
        environment,
        torch.device(device),
    )
