"""What each strategy compares, how totals are made, and that a turn at fault is alone in having no
reward."""

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from common.config.components import Bleu, Cosine, Length, Recall
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Fact, Strategy, Turn
from common.telemetry.metrics import Metrics
from reward_service.components.bleu import bleu
from reward_service.compose import judge, score_episodes, unscored
from reward_service.worker import record_rewards

SPECIAL = range(8)
PAD, BOS, EOS, Q, A = 0, 2, 3, 5, 6
ONE_HOT = np.eye(64, dtype=np.float32)
"""Under it, a text is like another as their counts of tokens are."""
HALF = math.sqrt(0.5)


def turn(
    query: Sequence[int], answer: Sequence[int], reference: Sequence[int] = (), /, **more: Any
) -> Turn:
    """Token ids below 8 are special; the template is added here."""
    return Turn(
        [BOS, Q, *query, A], [*answer, EOS], [0.0] * (len(answer) + 1), [*reference, EOS], **more
    )


def episode(strategy: Strategy, *turns: Turn, name: str = "e") -> Episode:
    return Episode(name, name, 0, turns, 0, strategy=strategy)


def raw(scored: Episode, component: str) -> list[float]:
    return [turn.rewards[component] for turn in scored.answered]


def only(**components: Any) -> Rewards:
    """The same mix for every strategy, of just these components."""
    mix = RewardMix(**{"bleu": None, "cosine": None, "length": None, "recall": None, **components})
    return Rewards(single=mix, cumulative=mix, long_term=mix)


def scored(one: Episode, rewards: Rewards) -> Episode:
    (result,) = score_episodes([one], rewards, ONE_HOT, SPECIAL)
    return result


# --- strategies -----------------------------------------------------------------------------------

OPENING = turn([10], [11])


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


# --- totals ---------------------------------------------------------------------------------------

ASKED = turn(
    [12],
    [13, 14, 15, 16],
    [13, 14, 15, 17, 18],
    facts=(Fact("Rex", 0),),
    answer="It is Rex",
    reference="Rex",
)
NOT_ASKED = replace(ASKED, facts=())
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
