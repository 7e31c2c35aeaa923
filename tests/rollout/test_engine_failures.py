"""Whatever is cancelled, fails or is refilled, in whatever order: the other episodes are what they
are alone."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.config.rollout import Sampling
from common.episode import Episode, Task
from common.models.reactive.model import ReactiveTransformer
from rollout.policies.reactive.engine import ReactiveEngine
from rollout.policies.reactive.memory_files import packed
from tests.reactive_episodes import SAMPLING, TOKENIZER, make_model, make_tasks

TASKS = make_tasks(18, return_memory=True)


@pytest.fixture(scope="module")
def model() -> ReactiveTransformer:
    return make_model()


@pytest.fixture(scope="module")
def alone(model: ReactiveTransformer) -> dict[str, Episode]:
    engine = ReactiveEngine(model, TOKENIZER, 1, SAMPLING)
    return {task.id: engine.run([task])[0] for task in TASKS}


def poisoned(model: ReactiveTransformer, task: Task) -> Task:
    """A task that starts from a memory with one number that is none."""
    memory = model.initial_memory([task.seed])[0].clone()
    memory[0, 2, 5] = float("nan")
    return dataclasses.replace(task, initial_memory=packed(memory))


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**31), slots=st.sampled_from([1, 2, 3, 5, 8]))
def test_cancelled_failed_and_refilled_slots_never_mix_memories(
    model: ReactiveTransformer, alone: dict[str, Episode], seed: int, slots: int
) -> None:
    draw = random.Random(seed)
    engine = ReactiveEngine(model, TOKENIZER, slots, SAMPLING)
    bad = {task.id for task in TASKS if draw.random() < 0.2 and task.row.interactions}
    to_come = [
        poisoned(model, task) if task.id in bad else task for task in draw.sample(TASKS, len(TASKS))
    ]
    cancelled: set[str] = set()
    came: dict[str, Episode] = {}
    while to_come or engine.in_flight:
        if to_come and draw.random() < 0.4:
            count = draw.randint(1, 4)
            engine.add(to_come[:count])
            del to_come[:count]
        if draw.random() < 0.15:
            victim = draw.choice(TASKS).id
            if engine.cancel(victim, "not needed any more"):
                cancelled.add(victim)
        for episode in engine.advance():
            assert episode.task not in came
            came[episode.task] = episode
    assert set(came) == {task.id for task in TASKS}
    for name, episode in came.items():
        if name in cancelled:
            # Who was cancelled keeps the turns that were over by then, if it had begun.
            assert episode.status == "failed"
            assert "not needed any more" in str(episode.turns[-1].failure)
            if name not in bad and episode.turns[0].query_ids:
                whole = [dataclasses.replace(turn, failure=None) for turn in episode.turns]
                assert tuple(whole) == alone[name].turns[: len(whole)]
        elif name in bad:
            assert episode.status == "failed"
            assert "not finite" in str(episode.turns[-1].failure)
        else:
            assert episode == alone[name]
    assert engine.tally.failed == len(cancelled | bad)
    assert engine.tally.episodes == len(TASKS) - engine.tally.failed


def test_an_episode_that_broke_leaves_nothing_in_its_slot(
    model: ReactiveTransformer, alone: dict[str, Episode]
) -> None:
    """0 × NaN is NaN: a masked position of the one before would reach the next through
    attention."""
    engine = ReactiveEngine(model, TOKENIZER, 1, SAMPLING)
    long = max(
        TASKS, key=lambda task: len(task.row.interactions[0].query) if task.row.interactions else 0
    )
    broken = engine.run([poisoned(model, long)])[0]
    assert broken.status == "failed"
    assert broken.turns[-1].failure == "turn 1: log-prob of token 0 is not finite"
    for task in TASKS:
        assert engine.run([task])[0] == alone[task.id]


def test_weights_that_are_not_finite_fail_every_episode_and_hang_none() -> None:
    model = make_model(1)
    model.decoder.layers[0].feed_forward.up.weight.data[3, 3] = float("inf")  # type: ignore[union-attr]
    episodes = ReactiveEngine(model, TOKENIZER, 4, SAMPLING).run(TASKS)
    assert {
        episode.status
        for episode, task in zip(episodes, TASKS, strict=True)
        if task.row.interactions
    } == {"failed"}


def test_cancelling_what_is_not_in_flight_says_so(model: ReactiveTransformer) -> None:
    engine = ReactiveEngine(model, TOKENIZER, 2, SAMPLING)
    assert not engine.cancel("task-0", "why not")
    engine.add(TASKS[:1])
    assert engine.cancel("task-0", "why not")
    assert [episode.status for episode in engine.advance()] == ["failed"]
    assert engine.in_flight == 0


def test_an_engine_with_episodes_in_flight_refuses_to_run_others(
    model: ReactiveTransformer,
) -> None:
    engine = ReactiveEngine(model, TOKENIZER, 2, SAMPLING)
    engine.add(TASKS[:3])
    with pytest.raises(RuntimeError, match="3 episodes are in flight"):
        engine.run(TASKS[3:])


def test_an_answer_ends_at_a_stop_string_wherever_tokens_are_cut(
    model: ReactiveTransformer,
) -> None:
    free = ReactiveEngine(model, TOKENIZER, 4, SAMPLING).run(TASKS)
    pairs = [
        a + b
        for episode in free
        for turn in episode.answered
        for a, b in itertools.pairwise(turn.answer)
        if (a + b).isalpha()
    ]
    stop = max(sorted(set(pairs)), key=pairs.count)
    stopped = ReactiveEngine(
        model, TOKENIZER, 4, Sampling(temperature=0.8, max_new_tokens=14, stop=(stop, "never said"))
    ).run(TASKS)
    ended = 0
    for with_stop, without in zip(stopped, free, strict=True):
        for turn, other in zip(with_stop.answered, without.answered, strict=True):
            said = b"".join(TOKENIZER.token_bytes(token) for token in turn.answer_ids)
            assert stop not in turn.answer
            if stop.encode() in said:
                ended += 1
                before = b"".join(TOKENIZER.token_bytes(token) for token in turn.answer_ids[:-1])
                assert stop.encode() not in before
                assert turn.answer == TOKENIZER.decode(turn.answer_ids).partition(stop)[0].rstrip()
            else:
                assert turn.answer_ids[-1] == TOKENIZER.eos_id or len(turn.answer_ids) == 14
            if turn.answer_ids != other.answer_ids:
                assert turn.answer_ids == other.answer_ids[: len(turn.answer_ids)]
                break  # memory was written with less, so what follows is another conversation
    assert ended > 3


def test_the_log_prob_without_filters_is_kept_where_a_filter_is_on(
    model: ReactiveTransformer,
) -> None:
    tasks = TASKS[:6]
    plain = ReactiveEngine(model, TOKENIZER, 3, Sampling(temperature=0.7, max_new_tokens=10)).run(
        tasks
    )
    assert all(not turn.unfiltered_log_probs for episode in plain for turn in episode.turns)
    filtering = Sampling(temperature=0.7, top_k=5, max_new_tokens=10)
    for task, episode in zip(
        tasks, ReactiveEngine(model, TOKENIZER, 3, filtering).run(tasks), strict=True
    ):
        memory = model.initial_memory([task.seed])
        for turn in episode.turns:
            ids = torch.tensor([turn.remembered_ids])
            if turn.log_probs:
                logits = model.decode(ids, memory)[0, len(turn.query_ids) - 1 : -1] / 0.7
                expected = logits.log_softmax(-1).gather(
                    -1, torch.tensor(turn.answer_ids)[:, None]
                )[:, 0]
                torch.testing.assert_close(
                    torch.tensor(turn.unfiltered_log_probs), expected.detach(), atol=1e-4, rtol=0
                )
                assert sum(turn.unfiltered_log_probs) < sum(turn.log_probs)
            memory = model.remember(memory, model.encode(ids, ids > -1), ids > -1)
