"""Turns and mixes for tests of the composition of rewards."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Fact, Strategy, Turn
from reward_service.compose import score_episodes

SPECIAL = range(8)

PAD, BOS, EOS, Q, A = 0, 2, 3, 5, 6

ONE_HOT = np.eye(64, dtype=np.float32)
"""Under it, a text is like another as their counts of tokens are."""


def turn(
    query: Sequence[int], answer: Sequence[int], reference: Sequence[int] = (), /, **more: Any
) -> Turn:
    """Token ids below 8 are special; the template is added here."""
    return Turn(
        [BOS, Q, *query, A], [*answer, EOS], [0.0] * (len(answer) + 1), [*reference, EOS], **more
    )


def episode(strategy: Strategy, *turns: Turn, name: str = "e") -> Episode:
    return Episode(name, name, 0, turns, 0, strategy=strategy)


def only(**components: Any) -> Rewards:
    """The same mix for every strategy, of just these components."""
    mix = RewardMix(**{"bleu": None, "cosine": None, "length": None, "recall": None, **components})
    return Rewards(single=mix, cumulative=mix, long_term=mix)


def scored(one: Episode, rewards: Rewards) -> Episode:
    (result,) = score_episodes([one], rewards, ONE_HOT, SPECIAL)
    return result


OPENING = turn([10], [11])


ASKED = turn(
    [12],
    [13, 14, 15, 16],
    [13, 14, 15, 17, 18],
    facts=(Fact("Rex", 0),),
    answer="It is Rex",
    reference="Rex",
)

NOT_ASKED = replace(ASKED, facts=())
