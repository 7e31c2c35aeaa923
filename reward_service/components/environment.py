"""The reward that the environment itself gave for an answer."""

from __future__ import annotations

import numpy as np

from common.config.components import EnvironmentReward
from reward_service.comparison import Compared
from reward_service.components.component import RewardComponent


def _score(_section: EnvironmentReward, compared: Compared) -> np.ndarray:
    return np.array([turn.rewards.get("environment", np.nan) for turn in compared.turns])


# An environment pays what it likes: no range is known.
ENVIRONMENT = RewardComponent(EnvironmentReward, _score, range=None, may_not_apply=True)
