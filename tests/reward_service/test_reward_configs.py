"""The mixes of the articles under configs/rewards: laid over the demo's settings, they give totals
worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from math import e, log, sqrt
from pathlib import Path

import numpy as np
import pytest

from common.config.loader import load_run
from common.config.rewards import Rewards
from common.episode import Episode, Strategy, Turn
from reward_service.compose import score_episodes

CONFIGS = Path(__file__).parents[2] / "configs"
MIXES = (
    "mostly_bleu",
    "mostly_bleu_0_to_10",
    "bleu_and_cosine",
    "bleu_and_cosine_0_to_10",
    "bleu_and_cosine_symmetric",
)


def rewards_of(name: str) -> Rewards:
    return load_run([CONFIGS / "demo.yaml", CONFIGS / "rewards" / f"{name}.yaml"]).rewards


def turn(query: Sequence[int], answer: Sequence[int], reference: Sequence[int] = (9,)) -> Turn:
    return Turn([2, 5, *query, 6], [*answer, 3], [], [*reference, 3])


OPENING = turn([10], [11])
CONVERSATIONS: dict[Strategy, tuple[Turn, ...]] = {
    "single": (
        OPENING,
        turn([12], [20, 21, 22, 23, 24], [20, 21, 22, 23, 25]),
        turn([13], [10], [20]),
    ),
    "cumulative": (
        OPENING,
        turn(
            [12], [20, 21, 22, 23, 24], [20, 21, 22, 23, 25]
        ),  # nothing in common with the opening
        turn(
            [13], [12, 20], [13, 14, 15, 16]
        ),  # a part of the interaction before, nothing of the reference
        turn(
            [14], [10], [10, 11]
        ),  # the running mean is 0.8 of the turn before last and 0.2 of the opening
    ),
    "long_term": (
        OPENING,
        turn([12], [10, 11], [10, 20]),  # says the opening again, where the topic should change
        turn([13], [30, 31, 32, 33], [30, 31, 32, 33]),  # the reference, and no running mean yet
        turn([14], [11], [40, 41]),  # back to the opening; what came in between is [12, 10, 11]
    ),
}

STEP = log(2) / 10
"""Method4's precision of the first order without a match, in an answer of two tokens; half of it
for the second, and so on."""
NEARLY = 0.8**0.2 * 0.75**0.2 * (2 / 3) ** 0.3 * 0.5**0.3
"""BLEU-4 of five tokens, the first four of which are the reference's."""
TWO_OF_SIX = e**-2 * STEP**0.3 * (STEP / 2) ** 0.3
TWO_OF_TWO = STEP**0.3 * (STEP / 2) ** 0.3
ONE_OF_TWO = 0.5**0.2 * STEP**0.2 * (STEP / 2) ** 0.3 * (STEP / 4) ** 0.3
TO_MEAN = 0.2 / sqrt(2 * (0.64 + 0.04))
"""Cosine of [10] and 0.8 of a text without it, 0.2 of the unit [10, 11]."""

BLEU_AND_COSINE: dict[Strategy, list[float]] = {
    "single": [
        0.4 * 0.4 * NEARLY + 0.5 * 0.35 * 0.8 + 0.1,
        0.4 * 0.6 / e + 0.5 * 0.65 / sqrt(2) + 0.1,
    ],
    "cumulative": [
        0.4 * 0.4 * NEARLY + 0.5 * 0.35 * 0.8 + 0.1,
        0.4 * 0.6 * TWO_OF_SIX + 0.5 * 0.5 / sqrt(3) + 0.1 * 0.5,
        0.4 * 0.4 / e + 0.5 * (0.3 / sqrt(2) + 0.2 * TO_MEAN) + 0.1 * 0.5,
    ],
    "long_term": [
        0.45 * (0.3 * ONE_OF_TWO + 0.7 * (1 - TWO_OF_TWO))
        + 0.45 * (0.3 * 0.5 + 0.7 * (1 - 1))
        + 0.1,
        0.4 * 0.4 + 0.5 * 0.3 / 0.8 + 0.1,
        0.4 * 0.6 / e + 0.5 * (0.5 / sqrt(2) + 0.2 * (1 - 1 / sqrt(3))) + 0.1 * 0.5,
    ],
}
MOSTLY_BLEU: dict[Strategy, list[float]] = {
    "single": [
        (0.65 * sqrt(0.8 * 0.75) + 0.15 * 0.5 * 0.8 + 0.1) / 0.9,
        (0.15 * 0.5 / sqrt(2) + 0.1) / 0.9,
    ],
    "cumulative": [
        (0.65 * sqrt(0.8 * 0.75) + 0.15 * 0.5 * 0.8 + 0.1) / 0.9,
        (0.15 * 0.5 / sqrt(3) + 0.1 * 0.5) / 0.9,
        (0.65 / e + 0.15 * (0.3 / sqrt(2) + 0.2 * TO_MEAN) + 0.1 * 0.5) / 0.9,
    ],
    "long_term": [
        (0.65 * sqrt(0.5 * STEP) + 0.15 * (0.5 * 0.5 + 0.5 * (1 - 1)) + 0.1) / 0.9,
        (0.65 + 0.15 * 0.3 / 0.8 + 0.1) / 0.9,
        (0.15 * (0.5 / sqrt(2) + 0.2 * (1 - 1 / sqrt(3))) + 0.1 * 0.5) / 0.9,
    ],
}


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("strategy", CONVERSATIONS)
def test_totals_are_those_of_the_articles_mix(name: str, strategy: Strategy) -> None:
    episode = Episode("e", "t", 0, CONVERSATIONS[strategy], 0, strategy=strategy)
    (scored,) = score_episodes([episode], rewards_of(name), np.eye(64, dtype=np.float32), range(8))
    expected = {
        "mostly_bleu": MOSTLY_BLEU[strategy],
        # The articles' sum is not divided by its weights' sum.
        "mostly_bleu_0_to_10": [10 * 0.9 * total for total in MOSTLY_BLEU[strategy]],
        "bleu_and_cosine": BLEU_AND_COSINE[strategy],
        "bleu_and_cosine_0_to_10": [10 * total for total in BLEU_AND_COSINE[strategy]],
        "bleu_and_cosine_symmetric": [2 * total - 1 for total in BLEU_AND_COSINE[strategy]],
    }
    assert [turn.reward for turn in scored.answered] == pytest.approx(expected[name], abs=1e-6)


def test_every_mix_has_its_totals_here_and_the_scales_differ_in_nothing_else() -> None:
    assert {file.stem for file in (CONFIGS / "rewards").glob("*.yaml")} == set(MIXES)
    plain = rewards_of("bleu_and_cosine")
    assert rewards_of("bleu_and_cosine_0_to_10") == plain.model_copy(update={"scale": 10.0})
    assert rewards_of("bleu_and_cosine_symmetric") == plain.model_copy(update={"symmetric": True})
