"""Rewards look at answers: a thought before [A] changes no component but its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.config.rewards import (
    Bleu,
    Cosine,
    ExactMatch,
    Format,
    FunctionReward,
    Length,
    Recall,
    Repetition,
    RewardMix,
    Rewards,
    Thought,
    ThoughtLength,
)  # fmt: skip
from common.data.special_tokens import ANSWER, BOS, EOS, QUERY, SPECIAL_TOKENS, THINK
from common.data.thoughts import spoken
from common.data.tokenizer import train_tokenizer
from common.episode import Episode, Fact, Strategy, Turn
from reward_service.components.bleu import bleu
from reward_service.components.thought_length import thought_length_reward
from reward_service.compose import score_episodes

TEXTS = (
    "my dog is called Rex",
    "you said Rex long ago",
    "it is Rex",
    "what is my dog called?",
    "perhaps it is Max",
    "good",
    "how nice",
)
TOKENIZER = train_tokenizer(TEXTS, 300)
EMBEDDING = np.random.default_rng(1).normal(size=(300, 16)).astype(np.float32)
SPECIAL = range(len(SPECIAL_TOKENS))


def everything(**more: Any) -> Rewards:
    mix = RewardMix(
        bleu=Bleu(reference=0.6, saved=0.4),
        cosine=Cosine(),
        length=Length(),
        recall=Recall(),
        repetition=Repetition(order=2),
        format=Format(pattern="it is .*"),
        exact_match=ExactMatch(),
        **more,
    )
    return Rewards(single=mix, cumulative=mix, long_term=mix)


def turn(
    query: str,
    answer: str,
    reference: str,
    think: str | None = None,
    thought: str | None = None,
    asks: bool = True,
) -> Turn:
    """think: the reference's thought; thought: the one given, which reaches the answer."""
    before = [] if thought is None else [*TOKENIZER.encode(thought), ANSWER]
    ids = [*before, *TOKENIZER.encode(answer), EOS]
    return Turn(
        TOKENIZER.prompt(query, think is not None), ids, [-0.5] * len(ids),
        TOKENIZER.answer(reference, think),
        facts=(Fact("Rex", 0),) if asks else (), query=query, answer=answer, reference=reference,
        thought=thought or "",
    )  # fmt: skip


def conversation(strategy: Strategy, thinks: bool, answers: Sequence[str]) -> Episode:
    think = "you said Rex long ago" if thinks else None
    opening = turn("my dog is called Rex", "good", "good", think, think, asks=False)
    asked = [
        turn(
            "what is my dog called?",
            answer,
            "it is Rex",
            think,
            "perhaps it is Max" if thinks else None,
        )
        for answer in answers
    ]
    return Episode("e", "t", 0, (opening, *asked), 0, strategy=strategy)


def scored(episode: Episode, rewards: Rewards) -> Episode:
    (result,) = score_episodes([episode], rewards, EMBEDDING, SPECIAL)
    return result


@pytest.mark.parametrize("strategy", ["single", "cumulative", "long_term"])
def test_every_component_of_an_answer_is_what_it_is_without_thoughts(strategy: Strategy) -> None:
    answers = ("it is Rex", "it is Max", "good", "")
    plain = scored(conversation(strategy, False, answers), everything())
    thoughtful = scored(conversation(strategy, True, answers), everything())
    assert [turn.failure for turn in thoughtful.answered] == [None] * 4
    for without, with_ in zip(plain.answered, thoughtful.answered, strict=True):
        assert with_.rewards == pytest.approx(dict(without.rewards))
        assert with_.reward == pytest.approx(without.reward)
    assert thoughtful.turns[1].thought == "perhaps it is Max", "the episode keeps what was thought"
    assert THINK in thoughtful.turns[1].query_ids


def test_a_thought_that_never_reaches_an_answer_is_an_empty_answer() -> None:
    thinking = turn("what is my dog called?", "it is Rex", "it is Rex", "hm", asks=True)
    assert ANSWER not in thinking.answer_ids
    lost = replace(
        conversation("single", True, ["x"]),
        turns=(conversation("single", True, ["x"]).turns[0], thinking),
    )
    silent = replace(
        lost, turns=(lost.turns[0], replace(thinking, answer_ids=[ANSWER, EOS], answer=""))
    )
    got, expected = (scored(episode, everything()).turns[1] for episode in (lost, silent))
    assert dict(got.rewards) == pytest.approx(dict(expected.rewards))
    assert (got.rewards["bleu"], got.rewards["length"], got.rewards["recall"]) == (0.0, 0.0, -1.0)


def test_the_thought_has_a_component_of_its_own_where_the_reference_has_one() -> None:
    rewards = everything(thought=Thought(weight=0.5, order=1))
    given, wanted = (
        TOKENIZER.encode(text) for text in ("perhaps it is Max", "you said Rex long ago")
    )
    thoughtful = scored(conversation("cumulative", True, ["it is Rex"]), rewards).turns[1]
    assert thoughtful.rewards["thought"] == pytest.approx(bleu([given], [[wanted]], order=1)[0])
    copied = turn(
        "what is my dog called?",
        "it is Max",
        "it is Rex",
        "you said Rex long ago",
        "you said Rex long ago",
    )
    one = conversation("cumulative", True, ["x"])
    both = scored(
        replace(one, turns=(one.turns[0], copied, replace(copied, answer_ids=wanted))), rewards
    )
    assert [turn.rewards["thought"] for turn in both.answered] == [1.0, 1.0], (
        "a thought counts whether it ends or not"
    )
    plain = scored(conversation("cumulative", False, ["it is Rex"]), rewards).turns[1]
    assert "thought" not in plain.rewards
    nothing = turn("what is my dog called?", "it is Rex", "it is Rex", "", "much ado")
    assert (
        "thought"
        not in scored(replace(one, turns=(one.turns[0], nothing)), rewards).turns[1].rewards
    )


def test_a_thought_longer_than_it_may_be_earns_less() -> None:
    rewards = everything(thought_length=ThoughtLength(words=2))
    thoughtful = scored(conversation("cumulative", True, ["it is Rex"]), rewards).turns[1]
    assert thoughtful.rewards["thought_length"] == pytest.approx(2 / 4), "perhaps it is Max"
    short = thought_length_reward(ThoughtLength(words=4), [thoughtful])
    assert short.tolist() == [1.0]
    plain = scored(conversation("cumulative", False, ["it is Rex"]), rewards).turns[1]
    assert "thought_length" not in plain.rewards


def answer_tokens(turn: Turn) -> float:
    return float(
        len(turn.answer_ids) + 100 * len(turn.log_probs) + 1e4 * (turn.query_ids[-1] == ANSWER)
    )


def test_functions_of_the_user_see_the_answer_alone() -> None:
    mine = FunctionReward(name="mine", path=f"{__name__}:answer_tokens")
    result = scored(
        conversation("single", True, ["it is Rex"]), everything(functions=(mine,))
    ).turns[1]
    tokens = len(TOKENIZER.encode("it is Rex")) + 1
    assert result.rewards["mine"] == 1e4 + 101 * tokens


def test_a_turn_without_a_thought_is_itself() -> None:
    plain = Turn([BOS, QUERY, 20, ANSWER], [21, ANSWER, 22], [0.0] * 3, [23])
    assert spoken(plain) is plain
    assert list(spoken(replace(plain, query_ids=[BOS, QUERY, 20, THINK])).answer_ids) == [22]
