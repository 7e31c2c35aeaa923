"""Whether the thought before an answer is short enough, in words: the one measure that policies of
all kinds have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.config.components import ThoughtLength
from common.data.special_tokens import thinks
from common.episode import Turn
from reward_service.comparison import Compared
from reward_service.components.component import RewardComponent


def thought_length_reward(section: ThoughtLength, turns: Sequence[Turn]) -> np.ndarray:
    """1 up to the number of words, then that number / words: float64 [turns]; nan where a turn has
    no thought."""
    thoughtful = np.array([bool(turn.thought) or thinks(turn.query_ids) for turn in turns], bool)
    words = np.array([len(turn.thought.split()) for turn in turns], np.float64)
    value = np.minimum(1.0, section.words / np.maximum(words, 1.0))
    return np.where(thoughtful, value, np.nan)


def _score(section: ThoughtLength, compared: Compared) -> np.ndarray:
    return thought_length_reward(section, compared.original)


THOUGHT_LENGTH = RewardComponent(ThoughtLength, _score, may_not_apply=True)
