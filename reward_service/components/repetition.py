"""Whether an answer repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.config.components import Repetition
from reward_service.comparison import Compared
from reward_service.components.component import RewardComponent


def distinct_shares(order: int, answers: Sequence[Sequence[int]]) -> np.ndarray:
    """Distinct n-grams of length `order` over all of them, of each answer's tokens: float64 [turns]
    in (0, 1]; 1 where it is too short to have one."""
    values = []
    for answer in answers:
        count = len(answer) - order + 1
        values.append(
            len(set(zip(*(answer[i:] for i in range(order)), strict=False))) / count
            if count > 0
            else 1.0
        )
    return np.array(values, dtype=np.float64)


def _score(section: Repetition, compared: Compared) -> np.ndarray:
    answers = compared.texts.answers
    spans = zip(answers.starts.tolist(), answers.lengths.tolist(), strict=True)
    return distinct_shares(
        section.order, [answers.flat[start : start + length].tolist() for start, length in spans]
    )


REPETITION = RewardComponent(Repetition, _score)
