"""Invariant 1: the learner recomputes the log-probs that the rollout recorded, to 1e-4, before
anything was trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from common.config.mrl import MRL, CurriculumStep
from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.episode import Episode
from common.models.reactive.model import ReactiveTransformer
from tests.local_source import lively_model, played, tiny_corpus, tiny_tasks
from tests.updates import make_update

SETTINGS = MRL(stage="mrl", curriculum=(CurriculumStep(name="all", iterations=1, max_steps=3),))


@pytest.fixture(scope="module")
def tokenizer() -> ConversationTokenizer:
    return train_tokenizer(tiny_corpus().texts, 400)


def deviations(
    model: ReactiveTransformer, episodes: list[Episode], temperature: float = 1.0
) -> tuple[float, float, float]:
    """Largest |log-prob - recorded| of the pass without gradients, of the pass that trains, and
    largest |ratio - 1| of the latter."""
    update = make_update(model, SETTINGS, temperature=temperature)
    experience = update.evaluate(episodes, list(range(len(episodes))))
    recorded = [torch.tensor(turn.log_probs) for episode in episodes for turn in episode.answered]
    recomputed = [log_probs for episode in experience.reference for log_probs in episode]
    reference = float((torch.cat(recomputed) - torch.cat(recorded)).abs().max())
    update.policy_terms(experience, first=True)
    row = update.metrics.flush(1, "mrl")
    return reference, row["ppo/log_prob_max_difference"], row["ppo/ratio_max_deviation_first"]


@pytest.mark.parametrize("initial_memory", ["normal", "learned"])
@pytest.mark.parametrize(
    "memory_attention", ["simple", "self", "interlayer", "gated_self_interlayer"]
)
def test_recomputed_log_probs_are_the_recorded_ones(
    tokenizer: ConversationTokenizer, memory_attention: str, initial_memory: str
) -> None:
    model = lively_model(
        tokenizer, memory_attention=memory_attention, initial_memory=initial_memory
    )
    episodes = played(model, tokenizer, tiny_tasks(20))
    assert len({len(episode.turns) for episode in episodes}) > 1
    assert len({len(turn.answer_ids) for episode in episodes for turn in episode.answered}) > 2
    assert max(deviations(model, episodes)) <= 1e-4


@pytest.mark.parametrize(
    ("shape", "task", "temperature"),
    [
        ({}, {"teacher_forcing": True}, 1.0),
        ({}, {}, 0.7),
        ({"residual_gate": "static", "gate_activation": "tanh"}, {"teacher_forcing": True}, 0.7),
        ({"experts": 4, "experts_per_token": 2, "decoder_ff": 24}, {}, 1.0),
        ({"memory_reads": 2, "residual_gate": "delta"}, {}, 1.0),
    ],
    ids=[
        "teacher forcing",
        "temperature",
        "both, other gates",
        "mixture of experts",
        "second read and delta write",
    ],
)
def test_replay_holds_however_episodes_were_played(
    tokenizer: ConversationTokenizer,
    shape: dict[str, Any],
    task: dict[str, Any],
    temperature: float,
) -> None:
    model = lively_model(tokenizer, **shape)
    episodes = played(model, tokenizer, tiny_tasks(8, **task), temperature)
    assert max(deviations(model, episodes, temperature)) <= 1e-4
    if temperature != 1.0:
        assert min(deviations(model, episodes, 1.0)) > 1e-2


@pytest.mark.parametrize("initial_memory", ["normal", "learned"])
def test_episode_that_went_on_from_held_memory_is_recomputed_from_it(
    tokenizer: ConversationTokenizer, initial_memory: str
) -> None:
    model = lively_model(tokenizer, initial_memory=initial_memory)
    before = played(model, tokenizer, tiny_tasks(6, return_memory=True))
    tasks = [
        replace(task, initial_memory=episode.final_memory if i % 2 else None)
        for i, (task, episode) in enumerate(zip(tiny_tasks(6), before, strict=True))
    ]
    episodes = played(model, tokenizer, tasks)
    assert max(deviations(model, episodes)) <= 1e-4
    forgotten = [replace(episode, initial_memory=None) for episode in episodes]
    assert min(deviations(model, forgotten)) > 1e-2


def test_replay_is_sensitive_to_seed_memory_and_weights(tokenizer: ConversationTokenizer) -> None:
    model = lively_model(tokenizer)
    episodes = played(model, tokenizer, tiny_tasks(6))
    assert (
        min(deviations(model, [replace(episode, seed=episode.seed + 1) for episode in episodes]))
        > 1e-2
    )

    def rewritten(episode: Episode) -> Episode:
        opening = replace(episode.turns[0], answer_ids=[*episode.turns[0].answer_ids[:-1], 9, 3])
        return replace(episode, turns=(opening, *episode.answered))

    assert min(deviations(model, [rewritten(episode) for episode in episodes])) > 1e-3
    with torch.no_grad():
        for parameter in model.memory_attention.parameters():
            parameter.mul_(1.05)
    assert min(deviations(model, episodes)) > 1e-3
