"""Models, conversations and episodes for tests of the engine for memory."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from common.config.rollout import Sampling
from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.episode import Episode, Interaction, Row, Task
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.seeding import derive, uniforms
from rollout.policies.reactive.backend import available
from rollout.policies.sampling import sample

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
