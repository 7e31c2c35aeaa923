"""Rewards of an answer's text by itself: whether it repeats itself, has the form asked for, or is the reference."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from common.config.rewards import ExactMatch, Format, Repetition
from common.episode import Turn
from common.text import words


def repetition_reward(section: Repetition, answers: Sequence[Sequence[int]]) -> np.ndarray:
    """Distinct n-grams over all n-grams of each answer's tokens: float64 [turns] in (0, 1]; 1 where it is too short to have one."""
    order, values = section.order, []
    for answer in answers:
        count = len(answer) - order + 1
        values.append(len(set(zip(*(answer[i:] for i in range(order)), strict=False))) / count if count > 0 else 1.0)
    return np.array(values, dtype=np.float64)


def format_reward(section: Format, turns: Sequence[Turn]) -> np.ndarray:
    """1 where the pattern matches the whole answer, else 0: float64 [turns]."""
    pattern = re.compile(section.pattern, re.DOTALL)
    return np.array([pattern.fullmatch(turn.answer.strip()) is not None for turn in turns], dtype=np.float64)


def exact_match_reward(section: ExactMatch, turns: Sequence[Turn]) -> np.ndarray:
    """1 where the answer is the reference, else 0: float64 [turns]."""
    if section.words_only:
        return np.array([words(turn.answer) == words(turn.reference) for turn in turns], dtype=np.float64)
    return np.array([turn.answer.strip() == turn.reference.strip() for turn in turns], dtype=np.float64)
