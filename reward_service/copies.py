"""What other answers would earn in place of the ones that were given: the right one, and copies. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from common.config.rewards import Rewards
from common.episode import Episode, Turn
from reward_service.comparison import comparisons, remembered_text
from reward_service.compose import judge
from reward_service.statistics import Statistics


def earned(
    places: Sequence[tuple[Episode, int]],
    answers: Sequence[Turn],
    rewards: Rewards,
    embedding: np.ndarray,
    special_ids: Collection[int],
    known_values: Collection[str] = (),
    statistics: Statistics = MappingProxyType({}),
) -> np.ndarray:
    """Reward of each turn of `answers` where it stands at (episode, turn): float64 [places], nan where
    it cannot be scored. Arguments from `rewards` on as for `judge`."""
    played = [
        replace(episode, turns=(*episode.turns[:turn], answer, *episode.turns[turn + 1 :]))
        for (episode, turn), answer in zip(places, answers, strict=True)
    ]
    verdicts = judge(played, rewards, embedding, special_ids, known_values, statistics)
    got = [own[turn - 1].reward for own, (_, turn) in zip(verdicts, places, strict=True)]
    return np.array([np.nan if reward is None else reward for reward in got], dtype=np.float64)


def right_answer(turn: Turn) -> Turn:
    """The turn with the data set's answer in place of its own."""
    return replace(turn, answer=turn.reference, answer_ids=turn.reference_ids)


def copies(episode: Episode, turn: int) -> tuple[Turn, Turn]:
    """The turn with the answer of the saved interaction in place of its own, and with all of that."""
    saved = episode.turns[comparisons(episode.strategy, len(episode.turns))[turn - 1].saved]
    own = episode.turns[turn]
    answer = saved.reference if saved.teacher_forced else saved.answer
    ids = saved.reference_ids if saved.teacher_forced else saved.answer_ids
    return (
        replace(own, answer=answer, answer_ids=ids),
        replace(own, answer=remembered_text(saved), answer_ids=saved.remembered_ids),
    )
