"""Rewards of turns: what changes none of them, and turns that cannot be scored."""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.config.components import Bleu, Cosine, Length, Recall
from common.episode import Episode, Fact, Strategy
from reward_service.compose import judge, score_episodes, unscored
from tests.composed_rewards import (
    ASKED,
    NOT_ASKED,
    ONE_HOT,
    OPENING,
    PAD,
    SPECIAL,
    episode,
    only,
    scored,
    turn,
)

# --- invariances ----------------------------------------------------------------------------------


def random_episodes(count: int, seed: int = 0) -> list[Episode]:
    rng = np.random.default_rng(seed)

    def tokens() -> list[int]:
        return rng.integers(len(SPECIAL), 64, rng.integers(0, 70)).tolist()

    strategies: list[Strategy] = ["single", "cumulative", "long_term"]
    return [
        episode(
            strategies[i % 3],
            *(
                turn(
                    tokens(),
                    tokens(),
                    tokens(),
                    facts=(Fact(f"v{t}", 0),) if t % 2 else (),
                    answer=f"v{t} v{rng.integers(6)}",
                )
                for t in range(int(rng.integers(2, 7)))
            ),
            name=f"e{i}",
        )
        for i in range(count)
    ]


EVERYTHING = only(
    bleu=Bleu(order=4, reference=0.4, saved=0.6), cosine=Cosine(), length=Length(), recall=Recall()
)


def test_an_episode_scores_alone_as_it_does_in_any_batch() -> None:
    episodes = random_episodes(30)
    together = score_episodes(episodes, EVERYTHING, ONE_HOT, SPECIAL)
    assert together == [scored(one, EVERYTHING) for one in episodes]
    assert score_episodes(episodes[::-1], EVERYTHING, ONE_HOT, SPECIAL)[::-1] == together
    assert all(one.status == "scored" and one.turns[0].reward is None for one in together)


def test_special_tokens_and_padding_change_nothing() -> None:
    rng = np.random.default_rng(3)

    def padded(ids: Sequence[int]) -> list[int]:
        out = list(ids) + [PAD] * int(rng.integers(0, 9))
        out.insert(int(rng.integers(0, len(out))), 7)
        return out

    episodes = random_episodes(12)
    noisy = [
        replace(
            one,
            turns=tuple(
                replace(
                    t,
                    query_ids=padded(t.query_ids),
                    answer_ids=padded(t.answer_ids),
                    reference_ids=padded(t.reference_ids),
                )
                for t in one.turns
            ),
        )
        for one in episodes
    ]
    plain, other = (
        score_episodes(batch, EVERYTHING, ONE_HOT, SPECIAL) for batch in (episodes, noisy)
    )
    assert [[t.reward for t in one.turns] for one in plain] == [
        [t.reward for t in one.turns] for one in other
    ]
    assert [[t.rewards for t in one.turns] for one in plain] == [
        [t.rewards for t in one.turns] for one in other
    ]


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reference_ids": [10, 64]}, "cosine: ValueError: token id 64 lies outside"),
        ({"reference_ids": [10, -1]}, "tokens: ValueError: token id -1 is negative"),
        ({"reference_ids": None}, "tokens: TypeError"),
        ({"facts": (Fact(" ", 0),)}, "recall: ValueError: the value ' '"),
    ],
)
def test_a_turn_that_cannot_be_scored_is_alone_in_having_no_reward(
    change: dict[str, Any], reason: str
) -> None:
    episodes = random_episodes(20)
    expected = score_episodes(episodes, EVERYTHING, ONE_HOT, SPECIAL)
    hurt = next(i for i, one in enumerate(episodes) if i > 5 and len(one.turns) > 3)
    turns = list(episodes[hurt].turns)
    turns[2] = replace(turns[2], **change)
    episodes[hurt] = replace(episodes[hurt], turns=tuple(turns))

    result = score_episodes(episodes, EVERYTHING, ONE_HOT, SPECIAL)
    at_fault = result[hurt].turns[2]
    assert (at_fault.reward, dict(at_fault.rewards)) == (None, {})
    assert str(at_fault.failure).startswith(reason)
    assert result[hurt].status == "scored"
    for one, other in zip(result, expected, strict=True):
        for index, (ours, theirs) in enumerate(zip(one.turns, other.turns, strict=True)):
            if (one.id, index) != (f"e{hurt}", 2):
                assert ours == theirs


def test_an_undefined_component_fails_the_turn_and_an_episode_without_any_reward_has_failed() -> (
    None
):
    rewards = only(bleu=Bleu(order=3, smoothing="method6"))
    defined, undefined = (
        turn([12], [13, 14, 15], [13, 14, 15]),
        turn([12], [13, 14, 15], [15, 14, 13]),
    )
    half = scored(episode("cumulative", OPENING, defined, undefined), rewards)
    assert half.status == "scored"
    assert half.turns[1].reward == pytest.approx(1.0)
    assert half.turns[2].failure == "bleu: the value is nan"
    assert scored(episode("cumulative", OPENING, undefined), rewards).status == "unscored"


def test_a_failed_episode_is_not_scored_and_an_unscored_one_gives_its_reason_everywhere() -> None:
    generated = episode("cumulative", OPENING, ASKED, NOT_ASKED)
    lost = generated.judged(unscored(generated, "DeadlineExceeded: too late"))
    assert lost.status == "unscored"
    assert [t.failure for t in lost.turns] == [
        None,
        "DeadlineExceeded: too late",
        "DeadlineExceeded: too late",
    ]
    assert scored(lost, EVERYTHING) == lost


def test_verdicts_on_a_thousand_turns_fit_the_message_that_ends_a_call_of_ray() -> None:
    verdicts = judge(
        [episode("cumulative", OPENING, *[ASKED] * 4)] * 256, EVERYTHING, ONE_HOT, SPECIAL
    )
    # 100 KiB, above which an answer takes the way through the object store.
    assert len(pickle.dumps(verdicts, 5)) < 100 * 2**10


def test_an_episode_that_failed_before_stays_as_it_is_whatever_is_said_of_it() -> None:
    unplayed = replace(episode("cumulative", OPENING), status="failed")
    assert scored(unplayed, EVERYTHING) == unplayed
    lost = replace(episode("cumulative", OPENING, ASKED), status="failed")
    assert (
        lost.judged(judge([replace(lost, status="generated")], EVERYTHING, ONE_HOT, SPECIAL)[0])
        == lost
    )
