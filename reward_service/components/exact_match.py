"""Whether an answer is the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.config.components import ExactMatch
from common.episode import Turn
from common.text.values import words
from reward_service.components.component import RewardComponent


def exact_match_reward(section: ExactMatch, turns: Sequence[Turn]) -> np.ndarray:
    """1 where the answer is the reference, else 0: float64 [turns]."""
    if section.words_only:
        return np.array(
            [words(turn.answer) == words(turn.reference) for turn in turns], dtype=np.float64
        )
    return np.array(
        [turn.answer.strip() == turn.reference.strip() for turn in turns], dtype=np.float64
    )


EXACT_MATCH = RewardComponent(
    ExactMatch, lambda section, compared: exact_match_reward(section, compared.turns)
)
