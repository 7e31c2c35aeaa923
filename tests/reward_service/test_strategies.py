"""What the strategies ask beyond the interaction before: the n-th one, a topic left behind, and
rewards that wait for the last answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Fact, Strategy, Turn
from common.failures import InputError
from learner.requirements import require_possible
from reward_service.comparison import comparisons
from reward_service.compose import judge
from tests.local_source import tiny_run

EMBEDDING = np.eye(64, 8, dtype=np.float32)


def turn(query: str, answer: str, *facts: Fact, reference: str = "", ids: int = 1) -> Turn:
    return Turn(
        query_ids=[ids],
        answer_ids=[ids + 1],
        log_probs=[-1.0],
        reference_ids=[ids + 1],
        facts=facts,
        query=query,
        answer=answer,
        reference=reference or answer,
    )


def dog(strategy: Strategy, *answers: str) -> Episode:
    """Told a dog's name, asked about the weather, asked for the name. answers: to the last two."""
    weather, name = answers
    turns = (
        turn("my dog is called Rex", "okay"),
        turn("nice weather", weather, reference="yes, sunny", ids=3),
        turn("what is it called?", name, Fact("Rex", 0), reference="Rex", ids=5),
    )
    return Episode("e", "e", 0, turns, 0, strategy=strategy)


def rewards(**settings: Any) -> Rewards:
    mix = {"bleu": None, "cosine": None, "length": {"weight": 0.4}, "recall": {"weight": 0.6}}
    mix |= settings.pop("mix", {})
    chosen = RewardMix.model_validate(mix)
    return Rewards(single=chosen, cumulative=chosen, long_term=chosen, **settings)


def earned(episode: Episode, given: Rewards) -> list[float]:
    (verdicts,) = judge([episode], given, EMBEDDING, ())
    found = [verdict.reward for verdict in verdicts]
    assert all(reward is not None for reward in found), verdicts
    return [reward for reward in found if reward is not None]


# --- the n-th interaction before ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns_back", "saved", "means"),
    [
        (1, [0, 1, 2, 3], [(0, 0), (0, 1), (0, 2), (0, 3)]),
        (2, [0, 0, 1, 2], [(0, 0), (0, 0), (0, 1), (0, 2)]),
        (9, [0, 0, 0, 0], [(0, 0)] * 4),
    ],
)
def test_the_saved_interaction_stands_so_many_turns_before_and_the_mean_before_that(
    turns_back: int, saved: list[int], means: list[tuple[int, int]]
) -> None:
    found = comparisons("cumulative", 5, turns_back=turns_back)
    assert [each.saved for each in found] == saved
    assert [(each.mean_from, each.mean_to) for each in found] == means


def test_openings_of_single_and_the_ends_of_long_term_do_not_move() -> None:
    for strategy in ("single", "long_term"):
        near, far = (comparisons(strategy, 4, turns_back=back) for back in (1, 3))
        assert (near[0].saved, near[-1].saved) == (far[0].saved, far[-1].saved) == (0, 0)


def test_an_answer_like_the_interaction_two_before_earns_by_it() -> None:
    turns = [turn(f"query {i}", f"answer {i}", ids=8 * i) for i in range(4)]
    turns[3] = replace(turns[3], answer_ids=turns[1].remembered_ids, reference_ids=[63])
    episode = replace(dog("cumulative", "", ""), turns=tuple(turns))
    only = {"length": None, "recall": None}
    saved = {"bleu": {"weight": 1.0, "order": 1, "saved": 1.0, "reference": 0.0}}
    near, far = (earned(episode, rewards(mix=only | saved, turns_back=back))[-1] for back in (1, 2))
    assert far > 0.9 > 0.1 > near


# --- a topic left behind --------------------------------------------------------------------------


def test_naming_an_old_topic_in_a_new_one_earns_less_than_nothing() -> None:
    mix = {"leak": {"weight": 0.6}}
    clean = earned(dog("long_term", "yes, sunny", "Rex"), rewards(mix=mix))
    leaky = earned(dog("long_term", "Rex", "Rex"), rewards(mix=mix))
    assert clean[0] == 1.0
    assert leaky[0] < 0
    assert clean[1] == leaky[1] == 1.0  # a question is judged by recall, and may name it


def test_a_value_that_the_query_mentions_is_no_leak() -> None:
    episode = dog("long_term", "Rex likes sun", "Rex")
    asked = replace(episode.turns[1], query="does Rex like sun?")
    episode = replace(episode, turns=(episode.turns[0], asked, episode.turns[2]))
    (verdicts,) = judge([episode], rewards(mix={"leak": {}}), EMBEDDING, ())
    assert verdicts[0].rewards["leak"] == 1.0
    assert "leak" not in verdicts[1].rewards


def test_a_conversation_without_values_leaks_nothing() -> None:
    episode = dog("long_term", "yes, sunny", "Rex")
    turns = tuple(replace(each, facts=()) for each in episode.turns)
    (verdicts,) = judge([replace(episode, turns=turns)], rewards(mix={"leak": {}}), EMBEDDING, ())
    assert all("leak" not in verdict.rewards for verdict in verdicts)


# --- rewards that wait ----------------------------------------------------------------------------


def test_in_a_delayed_strategy_only_the_last_answer_earns() -> None:
    for strategy in ("cumulative", "long_term"):
        given = rewards(delayed=(strategy,))
        assert earned(dog(strategy, "yes, sunny", "Rex"), given) == [0.0, 1.0]
        assert earned(dog(strategy, "yes, sunny", "Max"), given)[1] < 0.5
    other = rewards(delayed=("long_term",))
    assert earned(dog("cumulative", "yes, sunny", "Rex"), other) == [1.0, 1.0]


def test_what_is_below_nothing_does_not_wait() -> None:
    given = rewards(mix={"leak": {"weight": 0.6}}, delayed=("long_term",))
    now = earned(dog("long_term", "Rex", "Rex"), given)
    assert now[0] < 0
    at_once = earned(dog("long_term", "Rex", "Rex"), rewards(mix={"leak": {"weight": 0.6}}))
    assert now[0] == at_once[0]
    assert earned(dog("long_term", "yes, sunny", "Rex"), given) == [0.0, 1.0]


def test_components_of_an_answer_that_waits_are_shown_and_no_term_counts() -> None:
    (verdicts,) = judge(
        [dog("long_term", "yes, sunny", "Rex")], rewards(delayed=("long_term",)), EMBEDDING, ()
    )
    assert verdicts[0].rewards["length"] == 1.0
    assert verdicts[0].terms == {}
    assert verdicts[0].unrewarded
    assert not verdicts[1].unrewarded


def test_a_delayed_reward_without_a_discount_is_refused(tmp_path: Path) -> None:
    mrl = {
        "stage": "mrl",
        "curriculum": [{"name": "all", "iterations": 1, "max_steps": 2}],
        "ppo": {"discount": 0.0},
    }
    delayed = {"delayed": ["long_term"]}
    with pytest.raises(InputError, match=r"stages\.mrl\.ppo\.discount: is 0"):
        require_possible(tiny_run(tmp_path, mrl, rewards=delayed))
    require_possible(tiny_run(tmp_path, mrl | {"ppo": {"discount": 0.5}}, rewards=delayed))


# --- mixes of single steps ------------------------------------------------------------------------


def test_a_step_of_a_curriculum_may_have_a_mix_of_its_own() -> None:
    own = RewardMix.model_validate(
        {"bleu": None, "cosine": None, "length": None, "recall": None, "exact_match": {}}
    )
    given = rewards(steps={"last": own})
    first = replace(dog("cumulative", "yes, sunny", "it is Rex"), step="first")
    last = replace(first, step="last")
    both = judge([first, last, first], given, EMBEDDING, ())
    assert [set(verdicts[1].rewards) for verdicts in both] == [
        {"length", "recall"},
        {"exact_match"},
        {"length", "recall"},
    ]
    assert [verdicts[1].reward for verdicts in both] == [1.0, 0.0, 1.0]


def test_a_mix_for_a_step_that_no_curriculum_has_is_refused(tmp_path: Path) -> None:
    mrl = {"stage": "mrl", "curriculum": [{"name": "short", "iterations": 1, "max_steps": 2}]}
    with pytest.raises(InputError, match=r"rewards\.steps\.shrt: .*'short'"):
        require_possible(tiny_run(tmp_path, mrl, rewards={"steps": {"shrt": {}}}))
    require_possible(tiny_run(tmp_path, mrl, rewards={"steps": {"short": {}}}))


def test_mixes_of_steps_are_put_back_by_their_keys() -> None:
    given = rewards(steps={"last": RewardMix()})
    only = RewardMix.model_validate({"bleu": None, "cosine": None, "length": None})
    changed = given.with_mixes(dict.fromkeys(given.mixes(), only))
    assert changed.steps == {"last": only}
    assert changed.mixes() == dict.fromkeys(given.mixes(), only)
