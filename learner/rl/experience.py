"""From scored episodes to what PPO needs: one row per conversation, one column per answered turn.

Old log-probs are those recorded while sampling. The reference and the critic are evaluated here,
once per batch of episodes. Turns that could not be scored stay in their conversation (memory was
written with them) and are masked out of every loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.config.stages import PPO
from common.data.padding import pad
from common.episode import Episode
from common.failures import DataFailure
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.unroll import (
    ConversationBatch,
    TurnTokens,
    answer_logits,
    collate,
    memories,
)
from learner.parallel.group import Group
from learner.rl.advantages import (
    doubted,
    explained_variance,
    generalized_advantages,
    mean_and_variance,
    whiten,
)
from learner.rl.losses import token_log_probs

EVALUATION_ROWS = 256
"""Conversations in one forward pass without gradients; bounds its memory."""


@dataclass(frozen=True)
class Experience:
    """This rank's episodes of one iteration. Tensors are [episodes, answered turns], 0 where a
    conversation has no such turn."""

    episodes: list[Episode]
    initial: Tensor
    """[episodes, layers, slots, width]: the memory that each really started from."""
    scored: Tensor
    rewards: Tensor
    values: Tensor
    advantages: Tensor
    """Whitened over all ranks, where the configuration says so."""
    returns: Tensor
    reference: list[list[Tensor]]
    """Log-probs of each answer's tokens under the reference policy, by episode and answered
    turn."""
    figures: dict[str, float]
    """Statistics over all ranks, by metric name."""


def conversation(episode: Episode) -> list[TurnTokens]:
    return [
        TurnTokens(turn.query_ids, turn.answer_ids, turn.remembered_ids) for turn in episode.turns
    ]


def starting_memory(
    model: ReactiveTransformer, episodes: Sequence[Episode], device: torch.device
) -> Tensor:
    """The memory each episode started from: the one that came with it, else the one of its seed."""
    # A copy: a learned first memory is a view of the parameter, which the updates that follow
    # change.
    memory = model.initial_memory([episode.seed for episode in episodes]).clone()
    carried = [i for i, episode in enumerate(episodes) if episode.initial_memory is not None]
    if not carried:
        return memory
    held = [np.frombuffer(episodes[i].initial_memory or b"", dtype="<f4") for i in carried]
    for i, flat in zip(carried, held, strict=True):
        if flat.size != memory[0].numel():
            raise DataFailure(
                f"episode {episodes[i].id} carries a memory of {flat.size} numbers, this "
                f"model's has {memory[0].numel()}"
            )
    values = (
        torch.from_numpy(np.stack(held).copy())
        .view(len(carried), *memory.shape[1:])
        .to(device, memory.dtype)
    )
    return memory.index_copy(0, torch.tensor(carried, device=device), values)


@torch.no_grad()
def gather_experience(
    episodes: list[Episode],
    model: ReactiveTransformer,
    reference: ReactiveTransformer,
    critic: Critic,
    ppo: PPO,
    temperature: float,
    group: Group,
) -> Experience:
    """Evaluate a batch of scored episodes; every rank calls it with its own shard, which may be of
    any size but not empty."""
    shape = (len(episodes), max(len(episode.answered) for episode in episodes))
    scored, rewards, present = (
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(shape),
        torch.zeros(shape, dtype=torch.bool),
    )
    stds = torch.zeros(shape)
    for i, episode in enumerate(episodes):
        for k, turn in enumerate(episode.answered):
            present[i, k] = True
            if turn.reward is not None:
                scored[i, k], rewards[i, k], stds[i, k] = True, turn.reward, turn.reward_std
    scored, rewards, present, stds = (x.to(group.device) for x in (scored, rewards, present, stds))
    values = torch.zeros(shape, device=group.device)
    values[present] = critic_values(critic, episodes, group.device)

    # An episode ends where its conversation ends, so nothing lies beyond to bootstrap from.
    advantages, returns = generalized_advantages(
        rewards, values, 0.0, ppo.discount, ppo.gae_lambda, scored
    )
    _, mean, variance = mean_and_variance(advantages, scored, reduce=group.sum)
    figures = {
        "objective/advantage": float(mean),
        "objective/advantage_std": float(variance.sqrt()),
    }
    explained = explained_variance(values, returns, scored, group.sum)
    if explained is not None:
        figures["ppo/explained_variance"] = explained
    if ppo.doubt:
        advantages = doubted(advantages, stds)
    if ppo.whiten:
        advantages = whiten(advantages, scored, reduce=group.sum)
    log_probs = reference_log_probs(reference, episodes, temperature, group.device)
    return Experience(
        episodes,
        starting_memory(model, episodes, group.device),
        scored,
        rewards,
        values,
        advantages,
        returns,
        log_probs,
        figures,
    )


def critic_rows(episodes: Sequence[Episode]) -> list[list[int]]:
    """What the critic reads for each answered turn: the interaction before it and the query."""
    pairs = (pair for episode in episodes for pair in itertools.pairwise(episode.turns))
    return [[*before.remembered_ids, *turn.query_ids] for before, turn in pairs]


def critic_values(critic: Critic, episodes: Sequence[Episode], device: torch.device) -> Tensor:
    """[answered turns], episode by episode."""
    tokens, mask = pad(critic_rows(episodes))
    return critic(tokens.to(device), mask.to(device))


def reference_log_probs(
    reference: ReactiveTransformer,
    episodes: Sequence[Episode],
    temperature: float,
    device: torch.device,
) -> list[list[Tensor]]:
    """Log-probs of the answers under the reference policy, which reads the conversation into a
    memory of its own making."""
    result: list[list[Tensor]] = [[torch.empty(0)] * len(episode.answered) for episode in episodes]
    for start in range(0, len(episodes), EVALUATION_ROWS):
        part = episodes[start : start + EVALUATION_ROWS]
        batch = collate([conversation(episode) for episode in part]).to(device)
        memory = memories(reference, batch, starting_memory(reference, part, device), "all")
        flat, lengths = answer_log_probs(reference, batch, memory, temperature)
        for (i, turn), values in zip(answered_rows(batch), flat.split(lengths), strict=True):
            result[start + i][turn] = values
    return result


def answered_rows(batch: ConversationBatch) -> Iterator[tuple[int, int]]:
    """(conversation, answered turn) of each row that was answered, in the order of the batch's
    rows."""
    first = batch.active[0]
    for conversation_, turn in zip(
        batch.conversations[first:].tolist(), batch.turns[first:].tolist(), strict=True
    ):
        yield conversation_, turn - 1


def answer_log_probs(
    model: ReactiveTransformer, batch: ConversationBatch, memory: Tensor, temperature: float
) -> tuple[Tensor, list[int]]:
    """Log-probs of all answers' tokens, flat, and how many each answered row has."""
    first = batch.active[0]
    mask = batch.answer_mask()[first:]
    logits, targets = answer_logits(model, batch.tokens[first:], memory[first:], mask)
    return token_log_probs(logits, targets, temperature), mask.sum(1).tolist()
