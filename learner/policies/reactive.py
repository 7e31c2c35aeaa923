"""The Reactive Transformer as a trainable policy: gradients of an answer reach the writes that made
its memory.

Every pass starts from the memory that each episode really started from and rebuilds all later
memories with the present weights. Before the first update the log-probs are those recorded while
sampling; afterwards encoder and memory attention are trained by what later answers earned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from common.config.algorithms import PREVIOUS_INTERACTION, CriticInput
from common.data.padding import pad
from common.data.special_tokens import EOS, forced
from common.episode import Episode, Turn
from common.failures import InputError
from common.models.layers.feed_forward import Routing
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.parts import part_of
from common.models.reactive.unroll import (
    ConversationBatch,
    TurnTokens,
    answer_logits,
    collate,
    memories,
    memories_and_before,
)
from common.telemetry.metrics import Metrics
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.policies.memory_figures import drift, record_memory
from learner.policies.protocol import TokenBatch
from learner.rl.load_balance import no_router_terms, router_terms
from learner.rl.losses import memory_change_penalty, token_entropy, token_log_probs
from rollout.policies.reactive.memory_files import unpacked

EVALUATION_ROWS = 256
"""Conversations in one forward pass without gradients; bounds its memory."""
OBSERVED = 8
"""Episodes that figures of memory are taken from: the first ones of the whole batch, so the number
of ranks does not matter. They cost a pass of encoder and memory attention, and the singular values
of a few memories."""


class ReactivePolicy:
    """module: on the group's device. bptt_turns: how many writes before it the gradient of an
    answer flows back through. memory_change, router_loss: coefficients of the policy's own
    losses."""

    def __init__(
        self,
        module: ReactiveTransformer,
        group: Group,
        bptt_turns: int | Literal["all"] = "all",
        memory_change: float = 0.0,
        router_loss: float = 0.0,
    ):
        self.module, self._group = module, group
        self._bptt_turns = bptt_turns
        self._memory_change, self._router_loss = memory_change, router_loss

    def part_of(self, name: str) -> str:
        return part_of(name)

    def trains(self, name: str) -> bool:
        return True

    @property
    def beside(self) -> dict[str, nn.Module]:
        return {}

    def evaluate(
        self, episodes: Sequence[Episode], temperature: float, queries: bool = False
    ) -> TokenBatch:
        if not episodes:
            return self._nothing(queries)
        model, device = self.module, self._group.device
        batch = collate([conversation(episode) for episode in episodes]).to(device)
        memory, before = memories_and_before(
            model, batch, starting_memory(model, episodes), self._bptt_turns
        )
        start = batch.active[0]
        answered = batch.answer_mask()[start:]
        real = batch.real()[start:]
        mask = real if queries else answered
        routings: list[Routing] = []
        logits, targets = answer_logits(model, batch.tokens[start:], memory[start:], mask, routings)
        in_answer = answered[mask] if queries else slice(None)
        log_probs = token_log_probs(logits, targets, temperature)
        chosen = _chosen(episodes, batch).to(device)
        found = TokenBatch(
            torch.where(chosen, log_probs[in_answer], 0.0),
            torch.where(chosen, token_entropy(logits[in_answer], temperature), 0.0),
            list(_answers(batch)),
            answered.sum(1),
            [
                *self._memory_terms(before, memory[start:], batch.turns[start:].to(device) - 1),
                *router_terms(routings, real, self._router_loss, self._group),
            ],
            int(batch.length[start:].sum()),
        )
        if not queries:
            return found
        asked = mask & ~answered
        sums = log_probs.new_zeros(len(mask)).index_add(
            0, asked.nonzero()[:, 0], log_probs[asked[mask]]
        )
        return replace(found, queries=sums, query_lengths=asked.sum(1))

    def ended(self, ids: Sequence[int]) -> bool:
        return ids[-1] == EOS

    def _memory_terms(self, before: Tensor, after: Tensor, turns: Tensor) -> list[LossTerm]:
        """turns: [rows], that of the write between `before` and `after`; 0 is the opening."""
        written = torch.ones_like(turns, dtype=torch.bool)
        penalty = memory_change_penalty(before, after, turns, written)
        change = (after - before).detach().square().mean(dim=(1, 2, 3)).sum()
        return [
            LossTerm("ppo/loss_memory_change", penalty, turns.numel(), self._memory_change),
            LossTerm("memory/change", change, turns.numel(), 0.0),
        ]

    def _nothing(self, queries: bool) -> TokenBatch:
        config, device = self.module.config, self._group.device
        nothing = torch.stack([p.sum() for p in self.module.parameters()]).sum() * 0.0
        empty = nothing.expand(0)
        terms = [
            LossTerm("ppo/loss_memory_change", nothing, 0.0, self._memory_change),
            LossTerm("memory/change", nothing.detach(), 0.0, 0.0),
            *no_router_terms(config.layers, config.experts, self._router_loss, self._group),
        ]
        lengths = torch.empty(0, dtype=torch.long, device=device)
        return TokenBatch(
            empty,
            empty,
            [],
            lengths,
            terms,
            queries=empty if queries else None,
            query_lengths=lengths if queries else None,
        )

    @torch.no_grad()
    def log_probs(self, episodes: Sequence[Episode], temperature: float) -> list[list[Tensor]]:
        """The policy reads each conversation into a memory of its own making."""
        model, device = self.module, self._group.device
        found: list[list[Tensor]] = [[torch.empty(0)] * len(one.answered) for one in episodes]
        for start in range(0, len(episodes), EVALUATION_ROWS):
            part = episodes[start : start + EVALUATION_ROWS]
            batch = collate([conversation(episode) for episode in part]).to(device)
            memory = memories(model, batch, starting_memory(model, part), "all")
            first = batch.active[0]
            mask = batch.answer_mask()[first:]
            logits, targets = answer_logits(model, batch.tokens[first:], memory[first:], mask)
            flat = token_log_probs(logits, targets, temperature)
            flat = torch.where(_chosen(part, batch).to(device), flat, 0.0)
            for (i, turn), values in zip(
                _answers(batch), flat.split(mask.sum(1).tolist()), strict=True
            ):
                found[start + i][turn] = values
        return found

    def observe(self, episodes: Sequence[Episode], metrics: Metrics) -> None:
        part = [episode for episode in episodes if episode.batch_index < OBSERVED]
        if not part:
            return
        batch = collate([conversation(episode) for episode in part]).to(self._group.device)
        last = record_memory(self.module, batch, starting_memory(self.module, part), metrics)
        for episode, computed in zip(part, last, strict=True):
            if episode.final_memory is not None:
                played = unpacked(episode.final_memory, self.module.config).to(computed)
                metrics.record("memory/drift", drift(played, computed).item())

    def frozen_copy(self) -> ReactivePolicy:
        return ReactivePolicy(copy.deepcopy(self.module).requires_grad_(False), self._group)

    def value_function(self, reads: CriticInput, tokens: bool = False) -> ReactiveCritic:
        if tokens:
            raise InputError(
                "credit", "is token, and a reactive policy gives no values of single tokens"
            )
        critic = Critic.from_policy(self.module, reads.memory)
        return ReactiveCritic(critic.to(self._group.device), self._group, reads, self.module)


class ReactiveCritic:
    """Reads the interaction before each query, the query, and memory if it is to. policy: writes
    the memories that are read."""

    loss_in_policy = 0.0

    def __init__(
        self,
        module: Critic,
        group: Group,
        reads: CriticInput = PREVIOUS_INTERACTION,
        policy: ReactiveTransformer | None = None,
    ):
        self.module, self._group, self._reads, self._policy = module, group, reads, policy

    @torch.no_grad()
    def memories(self, episodes: Sequence[Episode]) -> list[Tensor] | None:
        if not self._reads.memory:
            return None
        assert self._policy is not None, "memories are the policy's"
        found: list[Tensor] = []
        for start in range(0, len(episodes), EVALUATION_ROWS):
            part = episodes[start : start + EVALUATION_ROWS]
            batch = collate([[*conversation(e), *_beyond(e)] for e in part])
            initial = starting_memory(self._policy, part)
            memory = memories(self._policy, batch.to(self._group.device), initial, "all")
            for i in range(len(part)):
                rows = (batch.conversations == i).nonzero().squeeze(1)[1:]  # without the opening
                found.append(memory[rows.to(memory.device)])
        return found

    def evaluate(
        self, episodes: Sequence[Episode], memories: Sequence[Tensor] | None = None
    ) -> Tensor:
        if not episodes:
            return (torch.stack([p.sum() for p in self.module.parameters()]).sum() * 0.0).expand(0)
        rows = [
            [*self._saved(episode, number).remembered_ids, *turn.query_ids]
            for episode in episodes
            for number, turn in enumerate(episode.answered, 1)
        ]
        if memories is None:
            return self._values(rows, None)
        pairs = zip(memories, episodes, strict=True)
        return self._values(rows, torch.cat([each[: len(e.answered)] for each, e in pairs]))

    @torch.no_grad()
    def begin(self, value: float) -> None:
        self.module.value.bias.fill_(value)  # its weights are 0 until something is learnt

    def beyond(
        self, episodes: Sequence[Episode], memories: Sequence[Tensor] | None = None
    ) -> Tensor:
        rows = [[*e.turns[-1].remembered_ids, *e.next_query_ids] for e in episodes]
        last = None if memories is None else torch.stack([each[-1] for each in memories])
        return self._values(rows, last)

    def _saved(self, episode: Episode, number: int) -> Turn:
        """The interaction that is read before the query of turn `number`."""
        last = number == len(episode.turns) - 1 and not episode.truncated
        asks_far = self._reads.opening and episode.strategy == "long_term" and last
        return episode.turns[0 if asks_far else number - 1]

    def _values(self, rows: list[list[int]], memory: Tensor | None) -> Tensor:
        limit, device = self._reads.max_tokens, self._group.device
        tokens, mask = pad(rows if limit is None else [row[-limit:] for row in rows])
        # A critic is any function of tokens and mask; one that reads memory takes it too.
        return self.module(tokens.to(device), mask.to(device), *[] if memory is None else [memory])


def conversation(episode: Episode) -> list[TurnTokens]:
    """The turns of an episode as `collate` takes them."""
    return [
        TurnTokens(turn.query_ids, turn.answer_ids, turn.remembered_ids) for turn in episode.turns
    ]


def _beyond(episode: Episode) -> list[TurnTokens]:
    """The turn that would have come next, where the episode was cut off. Nobody answered it, and
    what it would have left in memory is not looked at."""
    if not episode.truncated:
        return []
    return [TurnTokens(episode.next_query_ids, [], episode.turns[-1].remembered_ids)]


def starting_memory(model: ReactiveTransformer, episodes: Sequence[Episode]) -> Tensor:
    """The memory that each episode started from: the one that came with it, else that of its seed.

    Raises DataFailure for a memory of another shape than the model's.
    """
    memory = model.initial_memory([episode.seed for episode in episodes])
    carried = {
        i: unpacked(episode.initial_memory, model.config)
        for i, episode in enumerate(episodes)
        if episode.initial_memory is not None
    }
    if not carried:
        return memory
    index = torch.tensor(list(carried), device=memory.device)
    values = torch.stack(list(carried.values()))
    return memory.index_copy(0, index, values.to(memory.device, memory.dtype))


def _chosen(episodes: Sequence[Episode], batch: ConversationBatch) -> Tensor:
    """bool [tokens], answer after answer in the order of the rows: False for the end that a budget
    put after a thought, which is nobody's choice."""
    found = []
    for i, k in _answers(batch):
        turn = episodes[i].answered[k]
        found += forced(turn.query_ids, turn.answer_ids, turn.log_probs)
    return ~torch.tensor(found, dtype=torch.bool)


def _answers(batch: ConversationBatch) -> Iterator[tuple[int, int]]:
    """(conversation, answered turn) of each row that was answered, in the order of the rows."""
    first = batch.active[0]
    rows = zip(batch.conversations[first:].tolist(), batch.turns[first:].tolist(), strict=True)
    return ((conversation_, turn - 1) for conversation_, turn in rows)
