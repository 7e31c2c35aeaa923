"""Weights of turns as shares of steps: the loss in expectation, at less work."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from common.config.stages import MemoryAware
from common.config.turn_weights import TurnWeights
from common.models.reactive.unroll import TurnTokens
from learner.parallel.group import OneRank
from learner.stages.memory_aware import MemoryAwareObjective
from tests.plain_objectives import make_model, plain_conversations

TOLD, STEPS, CHOSEN = 0.25, 300, (0, 1)


def objective(sampled: bool) -> MemoryAwareObjective:
    """Two conversations whose last answers weigh 1 and all others `TOLD`."""
    told = [
        [*(replace(turn, weight=TOLD) for turn in turns[:-1]), replace(turns[-1], weight=1.0)]
        for turns in plain_conversations()[:2]
    ]
    weights = TurnWeights(told=TOLD, sampled=sampled)
    return MemoryAwareObjective(
        MemoryAware(stage="memory_aware", weights=weights), make_model(), told, 3
    )


def answer_tokens(turns: list[TurnTokens]) -> int:
    return sum(len(turn.answer) for turn in turns)


def counts(sampled: bool, steps: int) -> list[float]:
    """Sum of the weights of all answer tokens, by step."""
    made = objective(sampled)
    found = []
    for step in range(steps):
        terms = {term.name: term for term in made.terms(CHOSEN, step, OneRank())}
        found.append(float(terms["train/loss_lm"].count))
    return found


def test_an_answer_counts_in_the_share_of_steps_that_it_weighs() -> None:
    conversations = [list(turns) for turns in objective(True).conversations]
    always = sum(answer_tokens(turns[-1:]) for turns in conversations)
    others = [len(turn.answer) for turns in conversations for turn in turns[:-1]]
    found = counts(True, STEPS)
    assert min(found) >= always
    assert {round(each - always) for each in found} > {0}, "some steps compute more, none a part"
    mean = sum(found) / STEPS
    spread = (TOLD * (1 - TOLD) * sum(count**2 for count in others) / STEPS) ** 0.5
    assert mean == pytest.approx(always + TOLD * sum(others), abs=4 * spread)
    assert counts(False, 1) == [pytest.approx(always + TOLD * sum(others))]


def test_the_same_step_counts_the_same_answers() -> None:
    assert counts(True, 8) == counts(True, 8)


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(ValidationError, match="told is 2, and with `sampled` a weight is a share"):
        TurnWeights(told=2.0, sampled=True)
    assert TurnWeights(told=2.0).told == 2.0
