"""The rewards that other answers would earn in place of the given ones: the right answer, and
copies. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from common.config.components import Component
from common.config.rewards import Rewards
from common.data.thoughts import spoken
from common.episode import Episode, Strategy, Turn
from reward_service.comparison import Form, comparisons, remembered_text
from reward_service.components.table import component_of
from reward_service.compose import HELD, judge
from reward_service.normalization import Statistics


def earned(
    places: Sequence[tuple[Episode, int]],
    answers: Sequence[Turn],
    rewards: Rewards,
    embedding: np.ndarray,
    special_ids: Collection[int],
    known_values: Collection[str] = (),
    statistics: Statistics = MappingProxyType({}),
) -> np.ndarray:
    """Reward of each turn of `answers` where it stands at (episode, turn): float64 [places], nan
    where it cannot be scored. Arguments from `rewards` on as for `judge`."""
    played = [
        replace(episode, turns=(*episode.turns[:turn], answer, *episode.turns[turn + 1 :]))
        for (episode, turn), answer in zip(places, answers, strict=True)
    ]
    verdicts = judge(played, rewards, embedding, special_ids, known_values, statistics)
    got = [own[turn - 1].reward for own, (_, turn) in zip(verdicts, places, strict=True)]
    return np.array([np.nan if reward is None else reward for reward in got], dtype=np.float64)


def right_answer(turn: Turn) -> Turn:
    """The turn with the data set's answer in place of its own, and no thought."""
    turn = spoken(turn)
    return replace(turn, answer=turn.reference, answer_ids=turn.reference_ids)


def copies(episode: Episode, turn: int, turns_back: int = 1) -> tuple[Turn, Turn]:
    """The turn with the answer of the saved interaction in place of its own, and with all of
    that. turns_back: as in `comparisons`."""
    compared = comparisons(episode.strategy, len(episode.turns), turns_back=turns_back)
    saved = spoken(episode.turns[compared[turn - 1].saved])
    own = spoken(episode.turns[turn])
    answer = saved.reference if saved.teacher_forced else saved.answer
    ids = saved.reference_ids if saved.teacher_forced else saved.answer_ids
    return (
        replace(own, answer=answer, answer_ids=ids),
        replace(own, answer=remembered_text(saved), answer_ids=saved.remembered_ids),
    )


SAMPLE = 16
"""Turns of each strategy and form of a batch that copies are compared on."""


@dataclass(frozen=True, slots=True)
class CopyGain:
    """The mean rewards of right answers and of copies, for one strategy and form."""

    strategy: Strategy
    form: Form
    right: float
    copy: float
    """The copy of the saved interaction's answer, or of all of it, whichever earns more in the
    mean."""
    turns: int


def copy_gains(
    episodes: Sequence[Episode],
    rewards: Rewards,
    embedding: np.ndarray,
    special_ids: Collection[int],
    known_values: Collection[str] = (),
    statistics: Statistics = MappingProxyType({}),
) -> list[CopyGain]:
    """Mean rewards of the right answer and of copies over a sample of the turns of each strategy
    and form. Arguments as for `judge`.

    Only components that are computed here count: functions, endpoints and models have a price for
    every call.
    """
    here = _computed_here(rewards)
    gains = []
    for (strategy, form), places in _samples(episodes).items():
        kinds = [
            (right_answer(episode.turns[turn]), *copies(episode, turn, rewards.turns_back))
            for episode, turn in places
        ]
        got = np.array(
            [
                earned(places, answers, here, embedding, special_ids, known_values, statistics)
                for answers in zip(*kinds, strict=True)
            ]
        )
        right, *copied = got[:, np.isfinite(got).all(axis=0)]
        if len(right):
            best = max(float(copy.mean()) for copy in copied)
            gains.append(CopyGain(strategy, form, float(right.mean()), best, len(right)))
    return gains


def _samples(episodes: Sequence[Episode]) -> dict[tuple[Strategy, Form], list[tuple[Episode, int]]]:
    """Turns for each strategy and form, one from each of the first episodes: an early one, a later
    one, … Episodes without rewards are left out, for they may hold turns that cannot be judged."""
    samples: dict[tuple[Strategy, Form], list[tuple[Episode, int]]] = {}
    for episode in episodes:
        if episode.status in HELD:
            continue
        turns: dict[Form, list[int]] = {}
        for comparison in comparisons(episode.strategy, len(episode.turns)):
            turns.setdefault(comparison.form, []).append(comparison.turn)
        for form, own in turns.items():
            sample = samples.setdefault((episode.strategy, form), [])
            if len(sample) < SAMPLE:
                sample.append((episode, own[len(sample) % len(own)]))
    return samples


def _computed_here(rewards: Rewards) -> Rewards:
    """The same without components that another process, a service or a model computes."""

    def here(_name: str, section: Component) -> Component | None:
        component = component_of(section)
        costly = component.by_turn or component.reads(section) is not None
        return None if costly else section

    mixes = {key: mix.changed(here) for key, mix in rewards.mixes().items()}
    return rewards.with_mixes(mixes)
