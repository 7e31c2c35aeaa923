"""Figures of sampled answers to single prompts: how long and how varied they are, how often they
end, and how far the policy went from its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from common.config.run import Run
from common.episode import Episode, Row, Task
from common.failures import InputError
from common.seeding import derive
from common.storage.checkpoint import Checkpoint
from learner.checkpointing import REFERENCE, WITH_ADAPTERS, tensors_beside
from learner.evaluation.intervals import wilson
from learner.lora import is_adapter
from learner.parallel.group import OneRank
from learner.policies.causal import CausalPolicy
from learner.policies.table import CheckpointPolicy, open_policy

ORDERS = (1, 2, 3)
SAMPLES = 8
"""Answers that are shown."""


def prompt_tasks(rows: Sequence[Row], seed: int) -> list[Task]:
    """Sampled, as in training, each with a seed of its own."""
    return [
        Task(f"eval-prompt-{i}", row, derive(seed, "prompts", i), step="prompts", batch_index=i)
        for i, row in enumerate(rows)
    ]


def prompt_figures(
    episodes: Sequence[Episode], end: int, reference: CausalPolicy | None, temperature: float
) -> dict[str, Any]:
    """Figures of answers as a JSON-ready object. end: the token that ends an answer. reference:
    None leaves the KL out.

    distinct: share of different n-grams among all n-grams of the answers. kl: mean over answers of
    the sum of log π - log π_ref over their tokens, in nats (k1).
    """
    turns = [episode.answered[0] for episode in episodes if episode.status != "failed"]
    if not turns:
        raise InputError("prompts", "none could be answered")
    answers = [[token for token in turn.answer_ids if token != end] for turn in turns]
    joined = {n: _distinct(n, answers) for n in ORDERS}
    whole = [episode for episode in episodes if episode.status != "failed"]
    figures: dict[str, Any] = {
        "answers": len(turns),
        "failed": len(episodes) - len(turns),
        "length": sum(map(len, answers)) / len(answers),
        "ended": sum(turn.answer_ids[-1] == end for turn in turns) / len(turns),
        "distinct": {str(n): share for n, share in joined.items()},
        "samples": [
            {"prompt": turn.query, "answer": turn.answer, "reward": turn.reward}
            for turn in turns[:SAMPLES]
        ],
    }
    scored = [turn.reward for turn in turns if turn.reward is not None]
    if scored:
        figures["reward"] = sum(scored) / len(scored)
    if reference is not None:
        held = reference.log_probs(whole, temperature)
        differences = [
            sum(turn.log_probs) - float(each[0].sum())
            for turn, each in zip(turns, held, strict=True)
        ]
        figures["kl"] = sum(differences) / len(differences)
    return figures


def win_figures(ours: Sequence[float | None], theirs: Sequence[float | None]) -> dict[str, Any]:
    """Share of prompts whose answer is worth more than the reference's, half of one where both are
    worth the same, with a 95 % interval. ours, theirs: of the same prompts, in the same order; a
    prompt without both is left out and counted."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    if not pairs:
        raise InputError("judge", "gave no answer a score")
    hits = np.array([0.5 * (a == b) + (a > b) for a, b in pairs])
    low, high = wilson(float(hits.mean()), len(pairs))
    return {
        "share": float(hits.mean()),
        "low": low,
        "high": high,
        "alike": sum(a == b for a, b in pairs),
        "prompts": len(pairs),
        "left_out": len(ours) - len(pairs),
        "score": float(np.mean([a for a, _ in pairs])),
        "reference_score": float(np.mean([b for _, b in pairs])),
    }


def _distinct(order: int, answers: Sequence[Sequence[int]]) -> float:
    grams = [
        tuple(answer[i : i + order]) for answer in answers for i in range(len(answer) - order + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0


def reference_of(
    checkpoint: Checkpoint, opened: CheckpointPolicy, run: Run | None
) -> CausalPolicy | None:
    """The policy that reinforcement learning started from: named by the checkpoints of its stage,
    elsewhere the model that the run began with. None where neither is known. Raises InputError
    where the checkpoint names one that is not there."""
    settings = run.model.causal if run is not None else None
    if settings is None:
        return None
    state = _kept(tensors_beside(checkpoint))
    model = open_policy(checkpoint).module
    if state is None:
        from common.models.causal import open_causal

        model = open_causal(settings)[0]
    else:
        own = model.state_dict()
        model.load_state_dict({name: state.get(name, own[name]) for name in own})
    nn.Module.requires_grad_(model, False)
    return CausalPolicy(model, opened.tokenizer.memory, OneRank(), settings.value_head)


def _kept(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Weights of the reference among the tensors beside a checkpoint's model: a frozen copy, or
    those under adapters."""
    for module in (REFERENCE, WITH_ADAPTERS):
        prefix = f"{module}/"
        found = {
            name.removeprefix(prefix).replace(".base_layer.", "."): value
            for name, value in tensors.items()
            if name.startswith(prefix) and not is_adapter(name)
        }
        if found:
            return found
    return None
