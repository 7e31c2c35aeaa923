"""Whether the thought before an answer is like the reference's."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from common.config.components import Thought
from common.data.thoughts import thoughts
from common.episode import Turn
from reward_service.comparison import Compared
from reward_service.components.bleu import bleu
from reward_service.components.component import RewardComponent


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


def _score(section: Thought, compared: Compared) -> np.ndarray:
    return thought_reward(section, compared.original, compared.batch.special_ids)


THOUGHT = RewardComponent(Thought, _score, may_not_apply=True)
