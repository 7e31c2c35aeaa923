from __future__ import annotations

import warnings

import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from common.episode import Fact, Interaction, Row
from common.failures import InputError
from rollout.environments.conversation import Conversation, MemoryEnvironment

ROW = Row(
    "My dog is called Rex.",
    "Nice.",
    (
        Interaction("Hello", "Hi", role="distract"),
        Interaction("My dog's name?", "Rex.", role="recall", facts=(Fact("Rex", 0),)),
    ),
)


def test_gymnasium_finds_no_fault() -> None:
    with warnings.catch_warnings():
        # Hints, no rule: the observation space is of a kind of its own.
        warnings.filterwarnings("ignore", module="gymnasium")
        check_env(
            MemoryEnvironment([ROW, Row("a", "b", ROW.interactions[:1])]), skip_render_check=True
        )


def test_a_conversation_asks_its_queries_in_order_whatever_is_answered() -> None:
    environment = MemoryEnvironment()
    query, info = environment.reset(options={"row": ROW})
    assert (query, info["role"], info["turn"], info["opening"]) == (
        "Hello",
        "distract",
        1,
        ("My dog is called Rex.", "Nice."),
    )
    query, reward, terminated, truncated, info = environment.step("nonsense")
    assert (query, reward, terminated, truncated) == ("My dog's name?", 0.0, False, False)
    assert (info["role"], info["facts"], info["reference"], info["last"]) == (
        "recall",
        (Fact("Rex", 0),),
        "Rex.",
        True,
    )
    assert environment.step([1, 2, 3])[:4] == ("", 0.0, True, False)
    with pytest.raises(ResetNeeded):
        environment.step("more")


def test_rows_are_drawn_with_the_seed() -> None:
    environment = MemoryEnvironment(
        [Row(str(i), "", (Interaction(f"query {i}", ""),)) for i in range(50)]
    )
    first = [environment.reset(seed=seed)[0] for seed in range(5)]
    assert [environment.reset(seed=seed)[0] for seed in range(5)] == first
    assert len(set(first)) > 1


def test_nothing_to_play_is_said_so() -> None:
    with pytest.raises(InputError, match="nothing to play"):
        MemoryEnvironment().reset()
    with pytest.raises(InputError, match="follow-ups"):
        MemoryEnvironment().reset(options={"row": Row("a", "b", ())})


def test_a_conversation_ends_with_its_last_turn() -> None:
    conversation = Conversation(ROW)
    assert conversation.interaction == ROW.opening
    assert [conversation.advance().query for _ in range(2)] == ["Hello", "My dog's name?"]
    assert conversation.done
    with pytest.raises(IndexError, match="turn 2"):
        conversation.advance()
