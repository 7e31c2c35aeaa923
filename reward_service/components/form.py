"""Rewards of an answer's text by itself: whether it repeats itself, has the form asked for, or is
the reference; and of the thought before it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np

from common.config.rewards import ExactMatch, Format, Repetition, Thought
from common.data.special_tokens import thoughts
from common.episode import Turn
from common.text.values import words
from reward_service.components.bleu import bleu


def repetition_reward(section: Repetition, answers: Sequence[Sequence[int]]) -> np.ndarray:
    """Distinct n-grams over all n-grams of each answer's tokens: float64 [turns] in (0, 1]; 1 where
    it is too short to have one."""
    order, values = section.order, []
    for answer in answers:
        count = len(answer) - order + 1
        values.append(
            len(set(zip(*(answer[i:] for i in range(order)), strict=False))) / count
            if count > 0
            else 1.0
        )
    return np.array(values, dtype=np.float64)


def format_reward(section: Format, turns: Sequence[Turn]) -> np.ndarray:
    """1 where the pattern matches the whole answer, else 0: float64 [turns]."""
    pattern = re.compile(section.pattern, re.DOTALL)
    return np.array(
        [pattern.fullmatch(turn.answer.strip()) is not None for turn in turns], dtype=np.float64
    )


def exact_match_reward(section: ExactMatch, turns: Sequence[Turn]) -> np.ndarray:
    """1 where the answer is the reference, else 0: float64 [turns]."""
    if section.words_only:
        return np.array(
            [words(turn.answer) == words(turn.reference) for turn in turns], dtype=np.float64
        )
    return np.array(
        [turn.answer.strip() == turn.reference.strip() for turn in turns], dtype=np.float64
    )


def thought_reward(
    section: Thought, turns: Sequence[Turn], special_ids: Collection[int]
) -> np.ndarray:
    """BLEU of each turn's thought against the reference's: float64 [turns]; nan where that has
    none."""
    out = np.full(len(turns), np.nan)
    pairs = [[[i for i in ids if i not in special_ids] for ids in thoughts(turn)] for turn in turns]
    rows = [row for row, (_, reference) in enumerate(pairs) if reference]
    out[rows] = bleu(
        [pairs[row][0] for row in rows], [[pairs[row][1]] for row in rows], section.order
    )
    return out
