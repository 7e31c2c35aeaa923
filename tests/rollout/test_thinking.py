"""A thought before the answer of a Reactive Transformer: its budget, its place in the episode, and
that memory does not hold it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from common.config.rollout import Sampling
from common.data.special_tokens import ANSWER, EOS, THINK
from common.data.thoughts import spoken, thoughts
from common.data.tokenizer import train_tokenizer
from common.episode import Episode, Row
from common.models.reactive.model import ReactiveTransformer
from learner.evaluation.replay import parting, task_of
from learner.parallel.group import OneRank
from learner.policies.reactive import ReactivePolicy
from learner.stages.supervised import row_tokens
from rollout.policies.reactive.backend import available
from rollout.policies.reactive.engine import ReactiveEngine
from rollout.policies.reactive.memory_files import unpacked
from rollout.policies.reactive.session import Session
from tests.local_source import lively_model, tiny_corpus, tiny_tasks

TOKENIZER = train_tokenizer(tiny_corpus().texts, 400)
BUDGET = 4
BACKENDS = available(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def model() -> ReactiveTransformer:
    found = lively_model(TOKENIZER, max_tokens=64)
    with torch.no_grad():
        found.decoder.head.bias[ANSWER] = -4.0  # it hardly ever ends a thought by itself
    return found


def engine_of(
    model: ReactiveTransformer, backend: Any = "torch", **sampling: Any
) -> ReactiveEngine:
    settings = Sampling.model_validate({"max_new_tokens": 14, "think": "always"} | sampling)
    return ReactiveEngine(model, TOKENIZER, 4, settings, backend=backend)


def thoughtful(
    model: ReactiveTransformer, backend: Any = "torch", **sampling: Any
) -> list[Episode]:
    given = {"max_think_tokens": BUDGET} | sampling
    return engine_of(model, backend, **given).run(tiny_tasks(6))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_budget_ends_a_thought_and_the_answer_still_comes(
    model: ReactiveTransformer, backend: Any
) -> None:
    ended = 0
    for episode in thoughtful(model, backend):
        for turn in episode.answered:
            assert turn.query_ids[-1] == THINK
            thought, _ = thoughts(turn)
            if ANSWER not in turn.answer_ids:
                assert turn.answer_ids[-1] == EOS, "a thought that the policy ended as a whole"
                continue
            assert len(thought) <= BUDGET
            place = list(turn.answer_ids).index(ANSWER)
            if place == BUDGET:
                ended += 1
                assert turn.log_probs[place] == 0.0
            assert len(turn.answer_ids) > place + 1
            assert turn.answer == TOKENIZER.decode(turn.answer_ids[place + 1 :])
            assert turn.thought == TOKENIZER.decode(thought)
    assert ended > 3


def test_without_a_budget_and_without_the_setting_nothing_changes(
    model: ReactiveTransformer,
) -> None:
    free = thoughtful(model, max_think_tokens=None)
    assert any(ANSWER not in turn.answer_ids for episode in free for turn in episode.answered)
    plain = engine_of(model, think="data").run(tiny_tasks(6))
    same = engine_of(model, think="data", max_think_tokens=BUDGET).run(tiny_tasks(6))
    assert [e.turns for e in plain] == [e.turns for e in same]
    assert not any(turn.thought for episode in plain for turn in episode.answered)


def test_memory_after_a_turn_with_a_thought_is_that_of_the_turn_without_it(
    model: ReactiveTransformer,
) -> None:
    engine = engine_of(model, max_think_tokens=BUDGET)
    for episode in engine.run(tiny_tasks(4)):
        memory = model.initial_memory([episode.seed])
        plain = [spoken(turn) for turn in episode.turns]
        for turn, said in zip(episode.turns, plain, strict=True):
            assert turn.remembered_ids == said.remembered_ids
            assert THINK not in turn.remembered_ids
            with torch.no_grad():
                memory = engine._slots.remember(memory, [said.remembered_ids])
        (again,) = engine.run([replace(task_of(episode, TOKENIZER), return_memory=True)])
        assert parting(episode, again, rewards=False) is None
        assert again.final_memory is not None
        held = unpacked(again.final_memory, model.config)
        torch.testing.assert_close(held, memory[0], rtol=0, atol=1e-5)


def test_the_end_that_a_budget_put_is_learnt_by_nobody(model: ReactiveTransformer) -> None:
    """Recorded log-probs are the learner's own, of thoughts, too; a forced end has no gradient."""
    episodes = thoughtful(model, temperature=1.0)
    policy = ReactivePolicy(model, OneRank(), "all", 0.0, 0.0)
    batch = policy.evaluate(episodes, 1.0)
    recorded = [[turn.log_probs for turn in episode.answered] for episode in episodes]
    flat = batch.flat(recorded)
    torch.testing.assert_close(batch.log_probs, flat, rtol=0, atol=1e-4)
    torch.testing.assert_close(batch.flat(policy.log_probs(episodes, 1.0)), flat, rtol=0, atol=1e-4)
    certain = flat == 0.0
    assert int(certain.sum()) > 3
    (gradient,) = torch.autograd.grad(
        batch.log_probs[certain].sum() + batch.entropy[certain].sum(),
        [model.decoder.head.bias],
        allow_unused=True,
        retain_graph=True,
    )
    assert gradient is None or float(gradient.abs().max()) == 0.0
    (trained,) = torch.autograd.grad(batch.log_probs.sum(), [model.decoder.head.bias])
    assert float(trained.abs().max()) > 0


def test_a_session_shows_the_thought_apart(model: ReactiveTransformer) -> None:
    session = engine_session(model)
    events = list(session.respond("what is my dog called?"))
    kinds = [event.kind for event in events]
    assert kinds.count("thought") == 1
    said = "".join(event.text for event in events if event.kind == "token")
    (whole,) = (event.text for event in events if event.kind == "updating")
    assert said == whole
    first = next(i for i, event in enumerate(events) if event.kind == "token" and event.text)
    assert kinds.index("thought") < first


def engine_session(model: ReactiveTransformer) -> Session:
    sampling = Sampling(max_new_tokens=14, think="always", max_think_tokens=BUDGET)
    return Session(model, TOKENIZER, 3, sampling)


def test_settings_that_leave_no_answer_are_refused() -> None:
    with pytest.raises(ValueError, match="max_think_tokens: 9 of max_new_tokens 10 leave no ans"):
        Sampling(max_new_tokens=10, max_think_tokens=9)


def test_rows_with_thoughts_are_remembered_without_them() -> None:
    row = Row("my dog is Rex", "good", (), think="a name")
    (told,) = row_tokens(row, TOKENIZER)
    assert told.query[-1] == THINK
    assert list(told.remembered) == TOKENIZER.interaction("my dog is Rex", "good")
