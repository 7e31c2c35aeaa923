"""The engine against a plain recomputation without slots, caches or batches."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from typing import Any

import numpy as np
import pytest
import torch

from common.config.names import BackendName
from common.config.rollout import Sampling
from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.episode import Episode, Interaction, Memory, Row, Task
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.seeding import derive, uniforms
from rollout.policies.reactive.backend import available
from rollout.policies.reactive.engine import ReactiveEngine
from rollout.policies.reactive.memory_change import slot_changes
from rollout.policies.reactive.memory_files import memory_hash, packed
from rollout.policies.sampling import filtered, sample
from tests.plain_memory import encode

WORDS = [
    "the",
    "dog",
    "cat",
    "bird",
    "is",
    "called",
    "Rex",
    "Tom",
    "Ida",
    "lives",
    "in",
    "Rome",
    "red",
    "what",
    "who",
    "tea",
    "milk",
]
TOKENIZER: ConversationTokenizer = train_tokenizer([" ".join(WORDS)] * 2, 300)
SAMPLING = Sampling(temperature=0.8, max_new_tokens=14)

BACKENDS = available(torch.device("cpu"), torch.float32)
SHAPES: dict[str, dict[str, Any]] = {
    "mha": {"query_heads": 4, "kv_heads": 4},
    "gqa": {"query_heads": 4, "kv_heads": 2},
    "mqa": {"query_heads": 4, "kv_heads": 1},
    "sqa": {"query_heads": 2, "kv_heads": 2},
    "cross heads of their own": {
        "query_heads": 2,
        "kv_heads": 2,
        "cross_query_heads": 4,
        "cross_kv_heads": 1,
        "memory_query_heads": 4,
    },
    "mixture of experts": {"experts": 5, "experts_per_token": 2, "decoder_ff": 24},
    "one expert per token": {"experts": 5, "experts_per_token": 1, "decoder_ff": 24},
    "simple memory attention": {"memory_attention": "simple", "residual_gate": "static"},
    "self memory attention": {"memory_attention": "self", "residual_gate": "elementwise"},
    "interlayer memory attention": {
        "memory_attention": "interlayer",
        "gate_activation": "tanh",
        "residual_gate": "linear",
    },
    "no memory attention": {"memory_attention": "last_interaction"},
    "a gate per number": {
        "memory_attention": "simple",
        "residual_gate": "per_number",
        "gate_initial": -1.0,
        "gate_stretch": 0.1,
    },
    "a delta write": {"memory_attention": "self", "residual_gate": "delta", "gate_stretch": 0.1},
    "a second read": {"memory_reads": 2, "cross_query_heads": 4, "cross_kv_heads": 1},
    "a second read of experts": {"memory_reads": 2, "experts": 5, "decoder_ff": 24},
    "learned initial memory": {"initial_memory": "learned", "initial_memory_std": 1.0},
}


def make_model(seed: int = 0, **shape: Any) -> ReactiveTransformer:
    """Small, with weights large enough that memory and every past token change what comes next."""
    torch.manual_seed(seed)
    config = RxTConfig(
        **{
            "vocab_size": TOKENIZER.vocab_size,
            "width": 32,
            "heads": 4,
            "query_heads": 2,
            "kv_heads": 2,
            "decoder_ff": 48,
            "encoder_ff": 48,
        }
        | {"slots": 6, "max_tokens": 40, "initializer_range": 0.25, "initial_memory_std": 1.0}
        | shape
    )
    model = ReactiveTransformer(config).eval()
    # So that answers end at different lengths.
    model.decoder.head.bias.data[TOKENIZER.eos_id] = 3.0
    return model


def make_rows(count: int, seed: int = 0, most: int = 4) -> list[Row]:
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))

    return [
        Row(
            text(),
            text(),
            tuple(
                Interaction(text(), text(), role="recall")
                for _ in range(draw.randint(0 if i % 7 == 3 else 1, most))
            ),
        )
        for i in range(count)
    ]


def make_tasks(count: int, seed: int = 0, **fields: Any) -> list[Task]:
    return [
        Task(f"task-{i}", row, seed=derive(seed, i), **fields)
        for i, row in enumerate(make_rows(count, seed))
    ]


def remember(model: ReactiveTransformer, memory: torch.Tensor, ids: list[int]) -> torch.Tensor:
    tokens = torch.tensor([ids])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return model.remember(memory, model.encode(tokens, mask), mask)


@torch.no_grad()
def play_plainly(
    model: ReactiveTransformer, task: Task, sampling: Sampling
) -> tuple[list[list[int]], list[list[float]], torch.Tensor]:
    """Answers, log-probs and last memory, with the whole sequence decoded anew for every token."""
    memory = remember(
        model, model.initial_memory([task.seed]), TOKENIZER.interaction(task.row.opening)
    )
    answers, log_probs = [], []
    for turn, interaction in enumerate(task.row.interactions, start=1):
        prompt = TOKENIZER.prompt(interaction.query)
        answer: list[int] = []
        said: list[float] = []
        while (
            len(answer) < min(sampling.max_new_tokens, model.config.max_tokens - len(prompt))
            and TOKENIZER.eos_id not in answer
        ):
            logits = model.decode(torch.tensor([prompt + answer]), memory)[:, -1]
            number = torch.from_numpy(
                uniforms(np.array([derive(task.seed, turn)]), np.array([len(answer)]))
            )
            token, log_prob, _ = sample(
                logits, number, sampling, torch.tensor([True]) if task.greedy else None
            )
            answer.append(int(token))
            said.append(float(log_prob))
        answers.append(answer)
        log_probs.append(said)
        memory = remember(
            model,
            memory,
            prompt + (TOKENIZER.answer(interaction.answer) if task.teacher_forcing else answer),
        )
    return answers, log_probs, memory[0]


def answers(episode: Episode) -> list[list[int]]:
    return [list(turn.answer_ids) for turn in episode.answered]


def log_probs(episode: Episode) -> torch.Tensor:
    return torch.tensor([value for turn in episode.answered for value in turn.log_probs])


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
