"""The engine against a plain recomputation without slots, caches or batches."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch

from common.config.names import BackendName
from common.config.rollout import Sampling
from common.episode import Episode
from rollout.policies.reactive.engine import ReactiveEngine
from rollout.policies.reactive.memory_change import slot_changes
from rollout.policies.reactive.memory_files import memory_hash, packed
from rollout.policies.sampling import filtered
from tests.plain_memory import encode
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
    remember,
)


def memory_of(episode: Episode) -> torch.Tensor:
    assert episode.final_memory is not None
    return torch.from_numpy(np.frombuffer(episode.final_memory.data, dtype=np.float32).copy())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("greedy", [False, True], ids=["sampled", "greedy"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_episode_equals_plain_decoding_without_cache(
    shape: dict[str, Any], greedy: bool, backend: BackendName
) -> None:
    model = make_model(**shape)
    tasks = make_tasks(9, greedy=greedy, return_memory=True)
    episodes = ReactiveEngine(model, TOKENIZER, 4, SAMPLING, backend=backend).run(tasks)
    assert {episode.backend for episode in episodes} == {backend}
    for task, episode in zip(tasks, episodes, strict=True):
        expected_answers, expected_log_probs, expected_memory = play_plainly(model, task, SAMPLING)
        assert answers(episode) == expected_answers
        torch.testing.assert_close(
            log_probs(episode),
            torch.tensor([v for turn in expected_log_probs for v in turn]),
            atol=1e-4,
            rtol=0,
        )
        torch.testing.assert_close(
            memory_of(episode), expected_memory.flatten(), atol=1e-4, rtol=1e-4
        )
    lengths = {len(answer) for episode in episodes for answer in answers(episode)}
    assert greedy or len(lengths) > 1, (
        "all answers were equally long: the test would not see a row ending alone"
    )


def test_recorded_log_probs_are_those_of_the_filtered_distribution() -> None:
    model = make_model()
    sampling = Sampling(temperature=0.7, top_k=40, top_p=0.9, min_p=0.01, max_new_tokens=10)
    for task, episode in zip(
        tasks := make_tasks(6),
        ReactiveEngine(model, TOKENIZER, 3, sampling).run(tasks),
        strict=True,
    ):
        memory = model.initial_memory([task.seed])
        for turn in episode.turns:
            if turn.log_probs:
                ids = torch.tensor([[*turn.query_ids, *turn.answer_ids]])
                logits = model.decode(ids, memory)[0, len(turn.query_ids) - 1 : -1]
                expected = (
                    filtered(logits, sampling)
                    .log_softmax(-1)
                    .gather(-1, torch.tensor(turn.answer_ids)[:, None])[:, 0]
                )
                torch.testing.assert_close(
                    torch.tensor(turn.log_probs), expected.detach(), atol=1e-4, rtol=0
                )
            memory = remember(model, memory, turn.remembered_ids)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ({}, 64),
        (SHAPES["gqa"], 20),
        (SHAPES["mixture of experts"], 20),
        (SHAPES["a delta write"] | SHAPES["a second read"], 20),
        (SHAPES["no memory attention"], 20),
    ],
    ids=["sqa", "gqa", "experts", "delta write and second read", "last interaction"],
)
def test_an_episode_does_not_depend_on_slots_batch_or_order(
    shape: dict[str, Any], count: int, backend: BackendName
) -> None:
    model = make_model(**shape)
    tasks = make_tasks(count, return_memory=True)

    def engine(slots: int) -> ReactiveEngine:
        return ReactiveEngine(model, TOKENIZER, slots, SAMPLING, backend=backend)

    together = engine(64).run(tasks)
    shuffled = random.Random(1).sample(tasks, len(tasks))
    elsewhere = {episode.task: episode for episode in engine(7).run(shuffled)}
    one = engine(1)
    for task, episode in zip(tasks, together, strict=True):
        for other in (elsewhere[task.id], one.run([task])[0]):
            # Bit for bit: log-probs and the last memory are part of an episode.
            assert other == episode


def test_episodes_come_back_in_the_order_of_their_tasks() -> None:
    tasks = make_tasks(17)
    episodes = ReactiveEngine(make_model(), TOKENIZER, 4, SAMPLING).run(
        tasks, version=3, worker="w"
    )
    assert [episode.task for episode in episodes] == [task.id for task in tasks]
    assert {(episode.weights_version, episode.worker, episode.status) for episode in episodes} == {
        (3, "w", "generated")
    }
    assert [len(episode.answered) for episode in episodes] == [
        len(task.row.interactions) for task in tasks
    ]


def test_the_same_seed_gives_the_same_episode_and_another_seed_another() -> None:
    model, task = make_model(), make_tasks(1)[0]
    first, again, other = (
        ReactiveEngine(model, TOKENIZER, 2, SAMPLING).run([t])[0]
        for t in (task, task, dataclasses.replace(task, seed=9))
    )
    assert first == again
    assert answers(first) != answers(other)


def test_turns_record_what_happened() -> None:
    model, task = make_model(), make_tasks(8, return_memory=True)[5]
    episode = ReactiveEngine(model, TOKENIZER, 2, SAMPLING).run([task])[0]
    opening = episode.turns[0]
    assert list(opening.remembered_ids) == TOKENIZER.interaction(task.row.opening)
    assert opening.log_probs == []
    assert opening.role == "remember"
    assert [turn.done for turn in episode.turns] == [False] * (len(episode.turns) - 1) + [True]
    for turn, interaction in zip(episode.answered, task.row.interactions, strict=True):
        assert turn.query_ids == TOKENIZER.prompt(interaction.query)
        assert turn.reference_ids == TOKENIZER.answer(interaction.answer)
        assert (turn.query, turn.reference, turn.role) == (
            interaction.query,
            interaction.answer,
            "recall",
        )
        assert turn.answer == TOKENIZER.decode(turn.answer_ids)
        assert len(turn.log_probs) == len(turn.answer_ids) > 0
        ends = turn.answer_ids[-1] == TOKENIZER.eos_id
        assert ends or len(turn.answer_ids) == min(
            SAMPLING.max_new_tokens, model.config.max_tokens - len(turn.query_ids)
        )
    assert episode.memory_hash == memory_hash(episode.final_memory)


@pytest.mark.parametrize("backend", BACKENDS)
def test_turns_say_how_much_their_write_changed_each_slot(backend: BackendName) -> None:
    model, tasks = make_model(), make_tasks(6)
    for episode in ReactiveEngine(model, TOKENIZER, 3, SAMPLING, backend=backend).run(tasks):
        memory = model.initial_memory([episode.seed]).detach()
        expected = []
        for turn in episode.turns:
            encoded, mask = encode(model, turn.remembered_ids)
            before, memory = memory[0], model.remember(memory, encoded, mask).detach()
            layers = zip(before, memory[0], strict=True)
            expected.append(
                [
                    [float((b - a).norm() / a.norm()) for a, b in zip(*layer, strict=True)]
                    for layer in layers
                ]
            )
        assert len(episode.memory_change) == len(episode.turns)
        torch.testing.assert_close(
            torch.tensor(episode.memory_change), torch.tensor(expected), atol=1e-4, rtol=1e-4
        )


def test_the_change_of_a_large_memory_is_kept_as_means_of_neighbours() -> None:
    before = torch.ones(1, 2, 160, 4)
    after = before * torch.linspace(1, 2, 160)[:, None]
    changes = slot_changes(before, after)
    assert changes.shape == (1, 2, 64)
    torch.testing.assert_close(changes[0, 1, 0], torch.linspace(0, 1, 160)[:3].mean())
    assert slot_changes(torch.zeros_like(before), after).isfinite().all()


def test_teacher_forcing_writes_the_reference_and_keeps_the_generated_answer() -> None:
    model, task = make_model(), make_tasks(3, teacher_forcing=True, return_memory=True)[0]
    episode = ReactiveEngine(model, TOKENIZER, 2, SAMPLING).run([task])[0]
    expected_answers, _, expected_memory = play_plainly(model, task, SAMPLING)
    assert answers(episode) == expected_answers
    assert all(
        turn.teacher_forced and turn.remembered_ids == [*turn.query_ids, *turn.reference_ids]
        for turn in episode.answered
    )
    torch.testing.assert_close(memory_of(episode), expected_memory.flatten(), atol=1e-4, rtol=1e-4)


def test_an_episode_starts_from_the_memory_it_is_given() -> None:
    model, task = make_model(), make_tasks(1)[0]
    held = packed(model.initial_memory([77])[0])
    from_held = ReactiveEngine(model, TOKENIZER, 1, SAMPLING).run(
        [dataclasses.replace(task, initial_memory=held, return_memory=True)]
    )[0]
    from_seed = ReactiveEngine(model, TOKENIZER, 1, SAMPLING).run(
        [dataclasses.replace(task, return_memory=True)]
    )[0]
    as_seed = dataclasses.replace(
        task, initial_memory=packed(model.initial_memory([task.seed])[0]), return_memory=True
    )
    assert (
        ReactiveEngine(model, TOKENIZER, 1, SAMPLING).run([as_seed])[0].final_memory
        == from_seed.final_memory
    )
    assert from_held.initial_memory == held
    assert from_held.final_memory != from_seed.final_memory


def test_an_erased_episode_answers_every_query_from_the_memory_it_started_with() -> None:
    model, task = make_model(), make_tasks(1)[0]
    assert len(task.row.interactions) > 1
    erased = ReactiveEngine(model, TOKENIZER, 2, SAMPLING).run(
        [dataclasses.replace(task, erase_memory=True)]
    )[0]
    assert answers(erased) != answers(ReactiveEngine(model, TOKENIZER, 2, SAMPLING).run([task])[0])
    first = model.initial_memory([task.seed])
    for turn in erased.answered:
        logits = model.decode(torch.tensor([[*turn.query_ids, *turn.answer_ids]]), first)[
            0, len(turn.query_ids) - 1 : -1
        ]
        expected = (
            filtered(logits, SAMPLING)
            .log_softmax(-1)
            .gather(-1, torch.tensor(turn.answer_ids)[:, None])[:, 0]
        )
        torch.testing.assert_close(
            torch.tensor(turn.log_probs), expected.detach(), atol=1e-4, rtol=0
        )


def test_greedy_and_sampled_episodes_share_a_batch() -> None:
    model = make_model()
    mixed = [dataclasses.replace(task, greedy=i % 2 == 0) for i, task in enumerate(make_tasks(8))]
    for task, episode in zip(
        mixed, ReactiveEngine(model, TOKENIZER, 8, SAMPLING).run(mixed), strict=True
    ):
        expected, expected_log_probs, _ = play_plainly(model, task, SAMPLING)
        assert answers(episode) == expected
        torch.testing.assert_close(
            log_probs(episode),
            torch.tensor([v for turn in expected_log_probs for v in turn]),
            atol=1e-4,
            rtol=0,
        )


def test_temperature_zero_is_greedy() -> None:
    model, tasks = make_model(), make_tasks(5)
    cold = ReactiveEngine(model, TOKENIZER, 2, Sampling(temperature=0, max_new_tokens=14)).run(
        tasks
    )
    greedy = ReactiveEngine(model, TOKENIZER, 2, SAMPLING).run(
        [dataclasses.replace(task, greedy=True) for task in tasks]
    )
    assert [answers(episode) for episode in cold] == [answers(episode) for episode in greedy]
    for left, right in zip(cold, greedy, strict=True):
        torch.testing.assert_close(log_probs(left), log_probs(right), atol=1e-5, rtol=0)
