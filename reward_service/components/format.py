"""Whether an answer has the form that was asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from common.config.components import Format
from common.episode import Turn
from reward_service.components.component import RewardComponent


def format_reward(section: Format, turns: Sequence[Turn]) -> np.ndarray:
    """1 where the pattern matches the whole answer, else 0: float64 [turns]."""
    pattern = re.compile(section.pattern, re.DOTALL)
    return np.array(
        [pattern.fullmatch(turn.answer.strip()) is not None for turn in turns], dtype=np.float64
    )


FORMAT = RewardComponent(Format, lambda section, compared: format_reward(section, compared.turns))
