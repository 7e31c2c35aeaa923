"""What each strategy compares, how totals are made, and that a turn at fault is alone in having no
reward."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from pydantic import ValidationError

from common.config.components import Bleu, Cosine, Length, Recall
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Fact, Strategy
from common.telemetry.metrics import Metrics
from reward_service.components.bleu import bleu
from reward_service.compose import judge, score_episodes
from reward_service.worker import record_rewards
from tests.composed_rewards import (
    ASKED,
    NOT_ASKED,
    ONE_HOT,
    OPENING,
    SPECIAL,
    episode,
    only,
    scored,
    turn,
)

HALF = math.sqrt(0.5)


def raw(scored: Episode, component: str) -> list[float]:
    return [turn.rewards[component] for turn in scored.answered]


def test_single_compares_every_turn_with_the_opening_and_has_no_running_mean() -> None:
    one = episode("single", OPENING, turn([12], [10], [10]), turn([13], [11], [20]))
    first, second = raw(
        scored(one, only(cosine=Cosine(reference=0.5, saved=0.5, running=0.2))), "cosine"
    )
    assert first == pytest.approx((0.5 * 1 + 0.5 * HALF) / 1.0)
    assert second == pytest.approx((0.5 * 0 + 0.5 * HALF) / 1.0)


def test_cumulative_compares_with_the_turn_before_and_the_running_mean_of_those_before_it() -> None:
    one = episode(
        "cumulative",
        OPENING,
        turn([12], [13], [13]),
        turn([14], [10], [15]),
        turn([16], [12], [12, 17]),
    )
    first, second, third = raw(scored(one, only(cosine=Cosine())), "cosine")
    # Before there is a running mean, its weight is shared by the other two: 0.5 and 0.3 of 0.8.
    assert first == pytest.approx((0.5 * 1 + 0.3 * 0) / 0.8)
    # Reference [15] and saved [14, 10] against [10]: 0 and, for turn 2, saved is [12, 13]; the
    # running mean is the opening [10, 11].
    assert second == pytest.approx(0.2 * HALF)
    # mean = 0.8 * unit [12, 13] + 0.2 * unit [10, 11], and [12] against it is 0.8 / sqrt(2) / its
    # norm sqrt(0.68).
    assert third == pytest.approx(0.5 * HALF + 0.3 * 0 + 0.2 * 0.8 * HALF / math.sqrt(0.68))


def test_what_memory_was_written_with_is_what_is_saved() -> None:
    rewards = only(cosine=Cosine(reference=0, saved=1, running=0))
    answered = turn([12], [13], [14])
    forced = replace(answered, teacher_forced=True)
    for before, like in ((answered, [12, 13]), (forced, [12, 14])):
        one = episode("cumulative", OPENING, before, turn([30], like), turn([30], [20]))
        assert raw(scored(one, rewards), "cosine")[1] == pytest.approx(1.0)


def test_long_term_leaves_the_first_topic_and_comes_back_to_it() -> None:
    one = episode(
        "long_term",
        turn([10], [10]),
        turn([20], [10], [10]),  # topic change: the answer should not be like the opening, and is
        turn([21], [20], [20]),  # no running mean yet: the opening does not enter it
        turn([22], [21], [21]),  # saved is [21, 20]; the running mean is [20, 10]
        turn(
            [23], [10], [10]
        ),  # long range: saved is the opening; unlike the mean of [20, 10] and [21, 20]
    )
    change, second, third, back = raw(scored(one, only(cosine=Cosine())), "cosine")
    assert change == pytest.approx((0.5 * 1 + 0.3 * (1 - 1)) / 0.8)
    assert second == pytest.approx((0.5 * 1 + 0.3 * HALF) / 0.8)
    assert third == pytest.approx(0.5 * 1 + 0.3 * HALF + 0.2 * 0)
    # mean = 0.8 * unit [21, 20] + 0.2 * unit [20, 10]: 1 on token 20, 0.8 on 21 and 0.2 on 10, all
    # times sqrt(0.5).
    assert back == pytest.approx(0.5 * 1 + 0.3 * 1 + 0.2 * (1 - 0.2 / math.sqrt(1 + 0.64 + 0.04)))


def test_bleu_with_the_saved_interaction_is_turned_round_where_the_topic_changes() -> None:
    rewards = only(bleu=Bleu(order=1, smoothing="method0", reference=0.4, saved=0.6))
    one = episode(
        "long_term",
        turn([10], [11]),
        turn([12], [10], [10]),
        turn([13], [30], [31]),
        turn([14], [11], [11]),
    )
    change, _, back = raw(scored(one, rewards), "bleu")
    # One token against the two of the opening: precision 1, brevity penalty exp(1 - 2 / 1).
    assert change == pytest.approx(0.4 * 1 + 0.6 * (1 - math.exp(-1)))
    assert back == pytest.approx(0.4 * 1 + 0.6 * math.exp(-1))


def test_the_only_follow_up_of_a_long_term_episode_is_a_standard_one() -> None:
    turns = (OPENING, turn([12], [10], [10]))
    rewards = Rewards()
    assert (
        scored(episode("long_term", *turns), rewards).turns
        == scored(episode("single", *turns), rewards).turns
    )


TABLE = only(
    bleu=Bleu(weight=0.65),
    cosine=Cosine(weight=0.15, reference=1, saved=0, running=0),
    length=Length(weight=0.10),
)


def test_the_total_is_the_weighted_mean_of_raw_components_symmetric_then_scaled() -> None:
    expected_bleu = bleu([[13, 14, 15, 16]], [[[13, 14, 15, 17, 18]]], order=2)[0]
    cosine, length = 3 / math.sqrt(4 * 5), 4 / 5
    mean = (0.65 * expected_bleu + 0.15 * cosine + 0.10 * length) / 0.90
    for symmetric, scale, total in (
        (False, 1.0, mean),
        (False, 10.0, 10 * mean),
        (True, 1.0, 2 * mean - 1),
        (True, 10.0, 20 * mean - 10),
    ):
        rewards = TABLE.model_copy(update={"symmetric": symmetric, "scale": scale})
        result = scored(episode("cumulative", OPENING, NOT_ASKED), rewards).turns[1]
        assert result.reward == pytest.approx(total)
        assert dict(result.rewards) == pytest.approx(
            {"bleu": expected_bleu, "cosine": cosine, "length": length}
        )


def test_recall_gives_its_weight_to_the_others_where_nothing_is_asked() -> None:
    rewards = only(length=Length(weight=0.2), recall=Recall(weight=0.8))
    asked, not_asked = (
        scored(episode("cumulative", OPENING, turn), rewards).turns[1]
        for turn in (ASKED, NOT_ASKED)
    )
    assert asked.reward == pytest.approx(0.2 * 0.8 + 0.8 * 1.0)
    assert not_asked.reward == pytest.approx(0.8)
    assert "recall" not in not_asked.rewards


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_turn_to_which_nothing_applies_earns_nothing_and_has_not_failed(symmetric: bool) -> None:
    rewards = only(recall=Recall(), length=Length(weight=0.0)).model_copy(
        update={"symmetric": symmetric, "scale": 5.0}
    )
    result = scored(episode("cumulative", OPENING, NOT_ASKED, ASKED), rewards)
    assert [turn.reward for turn in result.answered] == [0.0, 5.0]
    assert [turn.failure for turn in result.answered] == [None, None]
    assert list(result.turns[1].rewards) == ["length"], "what has no weight is still shown"
    nothing = scored(episode("cumulative", OPENING, NOT_ASKED, NOT_ASKED), rewards)
    assert nothing.status == "scored"
    assert [turn.reward for turn in nothing.answered] == [0.0, 0.0]


def test_a_component_that_fails_is_not_one_that_does_not_apply() -> None:
    """Both have no value; the first leaves the turn without a reward, the second with none to
    earn."""
    rewards = only(recall=Recall(), length=Length(weight=0.0))
    broken = replace(NOT_ASKED, reference_ids=[-1])
    result = scored(episode("cumulative", OPENING, NOT_ASKED, broken), rewards)
    assert [turn.reward for turn in result.answered] == [0.0, None]
    assert str(result.turns[2].failure).startswith("tokens: ")
    assert scored(episode("cumulative", OPENING, broken), rewards).status == "unscored"
    verdicts = judge(
        [episode("cumulative", OPENING, NOT_ASKED, ASKED, broken)], rewards, ONE_HOT, SPECIAL
    )[0]
    assert [verdict.unrewarded for verdict in verdicts] == [True, False, False]
    metrics = Metrics()
    record_rewards(metrics, [verdicts])
    row = metrics.flush(1, "mrl")
    assert (
        row["reward/turns"],
        row["reward/unrewarded_turns"],
        row["reward/failed_turns{reason=tokens}"],
    ) == (2, 1, 1)


def test_a_value_told_for_another_fact_or_passed_as_known_counts_against_the_answer() -> None:
    def total(answer: str, known: Sequence[str] = ()) -> float:
        told = (Fact("Max", 0, outdated=("Bello",)),)
        one = episode(
            "cumulative", OPENING, replace(ASKED, facts=told), replace(ASKED, answer=answer)
        )
        (result,) = score_episodes(
            [one], only(recall=Recall(false_recall=0.5)), ONE_HOT, SPECIAL, known
        )
        return result.turns[2].rewards["recall"]

    assert total("Rex") == 1.0
    assert total("Max") == 0.0
    assert total("Ada") == -0.5, "it names nothing known"
    assert total("Rex Max") == 0.25
    assert total("Rex Bello") == 0.25, "what was replaced was told, too"
    assert total("Rex Ada") == 1.0
    assert total("Rex Ada", known=["Ada"]) == 0.25


def test_the_first_turn_and_the_topic_change_may_have_mixes_of_their_own() -> None:
    own = {
        name: RewardMix(bleu=None, cosine=None, recall=None, length=Length(target=n))
        for name, n in (("a", 4), ("b", 8), ("c", 16))
    }
    rewards = Rewards(
        single=own["a"],
        cumulative=own["a"],
        long_term=own["a"],
        first_turn=own["b"],
        topic_change=own["c"],
    )
    turns = (OPENING, NOT_ASKED, NOT_ASKED, NOT_ASKED)
    expected: dict[Strategy, float] = {"single": 0.5, "cumulative": 0.5, "long_term": 0.25}
    for strategy, first in expected.items():
        assert raw(scored(episode(strategy, *turns), rewards), "length") == [first, 1.0, 1.0]


def test_mixes_that_could_reward_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="no component"):
        RewardMix(bleu=Bleu(weight=0), cosine=None, length=None, recall=None)
    with pytest.raises(ValidationError, match="compare with nothing"):
        Cosine(reference=0, saved=0)
    with pytest.raises(ValidationError, match="order_weights has 1"):
        Bleu(order=2, order_weights=(1.0,))
