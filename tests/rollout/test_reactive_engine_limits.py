"""What the engine for memory refuses, counts and keeps alike in other precisions and with several
threads."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch

from common.config.rollout import Sampling
from common.episode import Interaction, Memory, Row, Task
from rollout.policies.reactive.engine import ReactiveEngine
from rollout.policies.reactive.memory_files import packed
from tests.reactive_episodes import (
    BACKENDS,
    SAMPLING,
    SHAPES,
    TOKENIZER,
    answers,
    log_probs,
    make_model,
    make_tasks,
    play_plainly,
)


def test_an_interaction_never_grows_past_the_model() -> None:
    model = make_model(max_tokens=16)
    model.decoder.head.bias.data[TOKENIZER.eos_id] = -1e9
    row = Row("dog", "cat", (Interaction("the dog cat bird is", "Rex"),) * 2)
    episode = ReactiveEngine(model, TOKENIZER, 1, Sampling(max_new_tokens=99)).run(
        [Task("long", row, seed=1)]
    )[0]
    assert {len(turn.remembered_ids) for turn in episode.answered} == {16}


@pytest.mark.parametrize(
    ("row", "turn"),
    [
        (Row("dog", "cat", (Interaction("dog", "cat"), Interaction("dog " * 40, "cat"))), 2),
        (Row("dog", "cat " * 60, (Interaction("dog", "cat"),)), 0),
    ],
)
def test_what_does_not_fit_fails_its_episode_at_the_turn_that_asks_it(row: Row, turn: int) -> None:
    tasks = [*make_tasks(2), Task("too-long", row, seed=0)]
    engine = ReactiveEngine(make_model(), TOKENIZER, 2, SAMPLING)
    *others, failed = engine.run(tasks)
    assert failed.status == "failed"
    assert re.match(rf"turn {turn}: .* tokens", failed.turns[-1].failure or "")
    assert len(failed.turns) == max(turn, 1)
    assert others == ReactiveEngine(engine.model, TOKENIZER, 2, SAMPLING).run(tasks[:2])


def test_a_memory_of_another_policy_fails_its_episode() -> None:
    model = make_model()
    whole = packed(model.initial_memory([0])[0])
    others = {"4 bytes": Memory("stm", b"0123"), "'text'": Memory("text", whole.data)}
    for what, other in others.items():
        task = dataclasses.replace(make_tasks(1)[0], initial_memory=other)
        [episode] = ReactiveEngine(model, TOKENIZER, 1, SAMPLING).run([task])
        assert episode.status == "failed"
        assert what in (episode.turns[-1].failure or "")


@pytest.mark.parametrize(("bias", "reaches"), [(4.0, True), (-100.0, False)])
def test_a_thought_is_no_part_of_the_answer_text(bias: float, reaches: bool) -> None:
    row = Row("dog", "cat", (Interaction("who", "Rex", think="the dog"),), think="a cat")
    model = make_model()
    model.decoder.head.bias.data[TOKENIZER.answer_id] = bias
    opening, turn = (
        ReactiveEngine(model, TOKENIZER, 1, SAMPLING).run([Task("t", row, seed=9)])[0].turns
    )
    assert (opening.answer, opening.thought) == ("cat", "a cat")
    assert turn.query_ids[-1] == TOKENIZER.think_id
    assert (TOKENIZER.answer_id in turn.answer_ids) == reaches
    cut = list(turn.answer_ids).index(TOKENIZER.answer_id) if reaches else len(turn.answer_ids)
    assert turn.answer == TOKENIZER.decode(turn.answer_ids[cut + 1 :])
    assert turn.thought == TOKENIZER.decode(turn.answer_ids[:cut]) != ""
    assert turn.reference_ids == TOKENIZER.answer("Rex", "the dog")


def test_rows_that_wait_for_others_change_nothing() -> None:
    class Lockstep(ReactiveEngine):
        def _due(self, ended: list[int]) -> bool:
            return len(ended) == len(self._live)

    model, tasks = make_model(max_tokens=26), make_tasks(20, return_memory=True)
    waiting = Lockstep(model, TOKENIZER, 8, SAMPLING)
    assert waiting.run(tasks) == ReactiveEngine(model, TOKENIZER, 8, SAMPLING).run(tasks)
    assert waiting.tally.row_steps == waiting.tally.tokens < waiting.tally.slot_steps


def test_occupied_slots_are_counted_over_all_slots() -> None:
    engine = ReactiveEngine(make_model(), TOKENIZER, 4, SAMPLING)
    episodes = engine.run(make_tasks(12))
    tally = engine.tally
    assert (
        tally.tokens
        == tally.row_steps
        == sum(len(turn.answer_ids) for episode in episodes for turn in episode.answered)
    )
    assert tally.slot_steps == 4 * tally.steps
    assert tally.episodes == 12
    assert tally.interactions == sum(len(episode.answered) for episode in episodes)
    assert tally.writes == tally.interactions + tally.episodes
    assert tally.write_batches < tally.writes


def test_double_precision_equals_plain_decoding() -> None:
    model = make_model().double()
    tasks = make_tasks(9)
    engine = ReactiveEngine(model, TOKENIZER, 4, SAMPLING)
    assert engine.backend == "torch"
    for task, episode in zip(tasks, engine.run(tasks), strict=True):
        expected, expected_log_probs, _ = play_plainly(model, task, SAMPLING)
        assert answers(episode) == expected
        torch.testing.assert_close(
            log_probs(episode),
            torch.tensor([v for turn in expected_log_probs for v in turn]),
            atol=1e-6,
            rtol=0,
        )


def test_bfloat16_plays_the_same_conversations_nearly() -> None:
    model = make_model()
    tasks = make_tasks(6, greedy=True)
    exact = ReactiveEngine(model, TOKENIZER, 3, SAMPLING).run(tasks)
    rounded = ReactiveEngine(make_model().to(torch.bfloat16), TOKENIZER, 3, SAMPLING).run(tasks)
    for left, right in zip(exact, rounded, strict=True):
        assert all(math.isfinite(value) for turn in right.answered for value in turn.log_probs)
        if left.answered:
            # A few bits of log-prob; greedy tokens may part later.
            assert abs(left.answered[0].log_probs[0] - right.answered[0].log_probs[0]) < 0.3


def test_weights_changed_in_place_are_those_that_the_next_run_is_played_with() -> None:
    model, tasks = make_model(), make_tasks(6)
    engine = ReactiveEngine(model, TOKENIZER, 4, SAMPLING)
    before = engine.run(tasks)
    model.load_state_dict(make_model(seed=1).state_dict())
    after = engine.run(tasks)
    assert after == ReactiveEngine(model, TOKENIZER, 4, SAMPLING).run(tasks)
    assert [answers(episode) for episode in after] != [answers(episode) for episode in before]


def test_several_threads_play_the_same_episodes() -> None:
    model, tasks = make_model(**SHAPES["mixture of experts"]), make_tasks(9)
    for backend in BACKENDS:
        alone = ReactiveEngine(model, TOKENIZER, 4, SAMPLING, backend=backend).run(tasks)
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            together = ReactiveEngine(model, TOKENIZER, 4, SAMPLING, backend=backend)
            assert together.backend == backend
            for one, other in zip(alone, together.run(tasks), strict=True):
                assert answers(one) == answers(other)
                torch.testing.assert_close(log_probs(one), log_probs(other), atol=1e-5, rtol=0)
        finally:
            torch.set_num_threads(threads)
