"""An `Update` of given parts, without a run around it."""

from __future__ import annotations

from typing import Any

from torch import nn

from common.config.mrl import MRL, CurriculumStep
from common.config.rewards import Rewards
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from common.telemetry.metrics import Metrics
from learner.parallel.group import Group, OneRank
from learner.policies.reactive import ReactiveCritic, ReactivePolicy
from learner.rl.algorithms.table import ALGORITHMS
from learner.rl.update import Update


def mrl(**settings: Any) -> MRL:
    """The settings of a stage of one curriculum step."""
    steps = (CurriculumStep(name="all", iterations=1, max_steps=9),)
    return MRL.model_validate({"stage": "mrl", "curriculum": steps} | settings)


def make_update(
    model: ReactiveTransformer,
    settings: MRL,
    reference: ReactiveTransformer | None = None,
    critic: Critic | None = None,
    *,
    temperature: float = 1.0,
    seed: int = 11,
    steps: int = 10,
    group: Group | None = None,
    reward_width: float | None = None,
) -> Update:
    """reference, critic: in place of those that the update makes itself."""
    group, section = group or OneRank(), settings.algorithm_settings
    policy = ReactivePolicy(
        model,
        group,
        section.bptt_turns,
        section.memory_change,
        settings.router_loss,
    )
    width = Rewards().width() if reward_width is None else reward_width
    algorithm = ALGORITHMS[settings.algorithm](section, width)
    update = Update(policy, algorithm, settings, steps, temperature, seed, group, Metrics())
    if reference is not None:
        nn.Module.requires_grad_(reference, False)
        update.reference = ReactivePolicy(reference, group)
    if critic is not None:
        made = update.critic
        assert isinstance(made, ReactiveCritic)
        made.module.load_state_dict(critic.state_dict())
    return update
