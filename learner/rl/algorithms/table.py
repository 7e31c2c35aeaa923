"""The algorithms that there are. `stages.mrl.algorithm` names one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.config.mrl import MRL
from common.config.rewards import Rewards
from learner.rl.algorithms.a2c import AdvantageActorCritic
from learner.rl.algorithms.algorithm import Algorithm
from learner.rl.algorithms.grpo import GroupRelative
from learner.rl.algorithms.ppo import ProximalPolicyOptimization
from learner.rl.algorithms.reinforce import MovingBaseline
from learner.rl.algorithms.rejection import RejectionSampling
from learner.rl.algorithms.rloo import LeaveOneOut

ALGORITHMS: dict[str, Callable[[Any, float], Algorithm]] = {
    "a2c": AdvantageActorCritic,
    "grpo": GroupRelative,
    "ppo": ProximalPolicyOptimization,
    "reinforce": MovingBaseline,
    "rejection": RejectionSampling,
    "rloo": LeaveOneOut,
}
"""By the name of the section of settings. Called with the settings and the width of the range that
rewards lie in."""


def make_algorithm(stage: MRL, rewards: Rewards) -> Algorithm:
    """The algorithm of a stage, at its start."""
    return ALGORITHMS[stage.algorithm](stage.algorithm_settings, rewards.width())
