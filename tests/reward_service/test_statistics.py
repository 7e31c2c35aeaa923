"""Clipping, running normalisation and what a turn records of them."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from common.config.components import Length, Recall
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Fact, Turn
from common.episode_arrow import from_table, to_table
from reward_service.compose import score_episodes
from reward_service.normalization import Moments, after, from_json, recorded, to_json

EMBEDDING = np.eye(64, dtype=np.float32)


def mixed(**length: object) -> Rewards:
    mix = RewardMix(
        bleu=None, cosine=None, recall=Recall(weight=1.0), length=Length(weight=1.0, **length)
    )  # type: ignore[arg-type]
    return Rewards(single=mix, cumulative=mix, long_term=mix)


def conversation(*lengths: int) -> Episode:
    """Answers of these lengths to references of ten tokens; every answer holds the fact it was
    asked for."""
    opening = Turn([2, 5, 10, 6], [11, 3], [], [11, 3])
    answered = tuple(
        Turn(
            [2, 5, 10, 6],
            [12] * n,
            [-1.0] * n,
            [12] * 10,
            "recall",
            (Fact("blue", 0),),
            answer="blue",
            reference="blue",
        )
        for n in lengths
    )
    return Episode(f"e{lengths}", "t", 0, (opening, *answered), 0)


def scored(
    rewards: Rewards, episode: Episode, statistics: dict[str, Moments] | None = None
) -> Episode:
    return score_episodes([episode], rewards, EMBEDDING, (), (), statistics or {})[0]


def test_a_clipped_component_counts_within_its_range_and_is_recorded_raw() -> None:
    turn = scored(mixed(clip=(0.0, 0.5)), conversation(9)).turns[1]
    assert turn.rewards == {"length": pytest.approx(0.9), "recall": 1.0}
    assert turn.reward == pytest.approx((0.5 + 1.0) / 2)
    assert (turn.terms["length"].low, turn.terms["length"].high, turn.terms["length"].weight) == (
        0.0,
        0.5,
        1.0,
    )


def test_a_normalised_component_counts_in_standard_deviations_of_what_was_seen_before() -> None:
    rewards = mixed(normalise=True)
    first = scored(rewards, conversation(2, 4, 9))
    assert [turn.reward for turn in first.answered] == pytest.approx(
        [(raw + 1) / 2 for raw in (0.2, 0.4, 0.9)]
    ), "nothing seen before"
    statistics = after({}, [first], rewards)
    mean, std = np.mean([0.2, 0.4, 0.9]), np.std([0.2, 0.4, 0.9])
    assert statistics["length"].mean == pytest.approx(mean)
    assert statistics["length"].std == pytest.approx(std)
    assert set(statistics) == {"length"}, "recall is not normalised"
    second = scored(rewards, conversation(10), statistics)
    assert second.turns[1].reward == pytest.approx(((1.0 - mean) / std + 1.0) / 2)


def test_statistics_of_parts_are_those_of_the_whole_and_survive_json() -> None:
    rewards = mixed(normalise=True)
    parts = [scored(rewards, conversation(*lengths)) for lengths in ((1, 5), (9,), (3, 3, 8))]
    whole = after({}, parts, rewards)["length"]
    statistics = {}
    for part in parts:
        statistics = from_json(json.loads(json.dumps(to_json(after(statistics, [part], rewards)))))
    assert astuple(statistics["length"]) == pytest.approx(astuple(whole))
    values = [turn.rewards["length"] for part in parts for turn in part.answered]
    assert astuple(whole) == pytest.approx((6, np.mean(values), np.var(values) * 6))


def test_statistics_are_of_values_held_to_their_clip() -> None:
    rewards = mixed(normalise=True, clip=(0.0, 0.5))
    seen = after({}, [scored(rewards, conversation(2, 9))], rewards)
    assert seen["length"].mean == pytest.approx((0.2 + 0.5) / 2)


def test_a_component_that_never_varied_is_not_divided_by_nothing() -> None:
    assert Moments(0, 0.0, 0.0).with_values(np.full(5, 0.3)).std == 1.0


def test_gain_and_bias_are_those_of_the_vector(vectors: dict[str, dict[str, Any]]) -> None:
    case = vectors["reward_norm"]["gain_bias_to_0_1"]
    values = np.array(case["inputs"]["rewards_on_ref_samples"])
    moments = Moments(0, 0.0, 0.0).with_values(values)
    assert 1 / moments.std == pytest.approx(case["outputs"]["gain"], abs=1e-9)
    assert -moments.mean / moments.std == pytest.approx(case["outputs"]["bias"], abs=1e-9)
    assert (values - moments.mean) / moments.std == pytest.approx(
        np.array(case["outputs"]["normalized"]), abs=1e-9
    )


def test_an_episode_can_be_scored_again_from_what_it_records_alone() -> None:
    rewards = mixed(normalise=True, clip=(0.0, 0.8))
    statistics = after({}, [scored(rewards, conversation(2, 4, 9))], rewards)
    once = scored(rewards, conversation(5, 7), statistics)
    (kept,) = from_table(to_table([once]))
    assert kept == once
    assert scored(rewards, replace(conversation(5, 7), id=once.id), recorded(kept)) == once


def test_versions_tell_settings_apart_and_ignore_how_much_a_component_counts() -> None:
    version = scored(mixed(), conversation(5)).turns[1].terms["length"].version
    assert (
        version
        == scored(mixed(clip=(0.0, 0.5), normalise=True), conversation(5))
        .turns[1]
        .terms["length"]
        .version
    )
    assert version != scored(mixed(target=20), conversation(5)).turns[1].terms["length"].version


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="low end should lie below"):
        Length(clip=(0.5, 0.5))
    mix = RewardMix(length=Length(normalise=True))
    with pytest.raises(ValidationError, match=r"symmetric maps totals in \[0, 1\]"):
        Rewards(single=mix, symmetric=True)
