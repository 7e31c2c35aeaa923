"""Reward of an answer's length. Lengths count tokens without special ones."""

from __future__ import annotations

import numpy as np

from common.config.components import Length
from reward_service.comparison import Compared
from reward_service.components.component import RewardComponent


def length_reward(section: Length, answers: np.ndarray, references: np.ndarray) -> np.ndarray:
    """length / target up to the target, then target / length, or 1 without penalty: float64
    [turns], in [0, 1].

    answers, references: lengths [turns]. Where the target is an empty reference, an empty answer
    earns 1, a longer one as above.
    """
    targets = references if section.target is None else np.full(len(answers), section.target)
    shorter, longer = np.minimum(answers, targets), np.maximum(answers, targets)
    ratio = np.where(longer == 0, 1.0, shorter / np.maximum(longer, 1))
    return ratio if section.penalty else np.where(answers >= targets, 1.0, ratio)


def _score(section: Length, compared: Compared) -> np.ndarray:
    texts = compared.texts
    return length_reward(section, texts.answers.lengths, texts.references.lengths)


LENGTH = RewardComponent(Length, _score)
