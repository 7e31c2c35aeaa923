"""A causal language model as a trainable policy.

Each answer is computed after the very ids that it was sampled after: what is remembered and the
prompt (`common/data/dialogue.py`). What the policy wrote to a text memory is an action like an
answer, and is computed after the prompt that it was written after. Rows are padded behind, where a
causal model sees nothing of it. With adapters, the reference is the same model with them switched
off.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.config.algorithms import CriticInput
from common.config.causal import CausalModel, ValueHeadSettings
from common.config.run import MICRO_BATCH_TOKENS
from common.data.bucketing import by_width
from common.data.dialogue import DialogueMemory
from common.data.padding import pad
from common.episode import Episode
from common.models.value_head import ValueHead
from common.telemetry.metrics import Metrics
from learner.checkpointing import WITH_ADAPTERS
from learner.lora import adapters_off, add_lora, has_adapters, is_adapter
from learner.parallel.group import Group
from learner.policies.protocol import TokenBatch
from learner.policies.trunk import SharedTrunk, Trunk, called
from learner.rl.losses import token_entropy, token_log_probs

CALL_COST = 64
"""Tokens that a forward pass costs beside its tokens."""


class Row(NamedTuple):
    """One action, such as an answer, and what stands before it."""

    action: tuple[int, int]
    """(episode, action)."""
    ids: list[int]
    start: int
    """Where the action begins in `ids`."""


class Answers(NamedTuple):
    """Figures of the tokens of the answers of one pass, flat, row after row."""

    log_probs: Tensor
    entropy: Tensor
    contexts: Tensor
    """[rows]: log-probability of what stands before each answer, but for its first token; 0 where
    it was not asked for."""


class CausalPolicy:
    """module: on the group's device, in evaluation mode, with adapters where it has any. memory: as
    episodes are played with it. plain: whether adapters are switched off, as in a reference.
    micro_batch_tokens: of one forward pass, padding included. A batch of more is computed in
    several, of which the backward pass computes each anew: memory is that of one pass, and the
    gradient is the same. trunk: the layers that do not learn; None: all learn, or the adapters."""

    def __init__(
        self,
        module: Any,
        memory: DialogueMemory,
        group: Group,
        value_head: ValueHeadSettings,
        plain: bool = False,
        micro_batch_tokens: int = MICRO_BATCH_TOKENS,
        trunk: Trunk | None = None,
    ):
        self._model, self.memory, self._group = module, memory, group
        self._value_head, self._plain = value_head, plain
        self.micro_batch_tokens, self._trunk = micro_batch_tokens, trunk
        # Without adapters a policy that has them is no module of its own: nothing is to be saved.
        self.module: Any = nn.Module() if plain else module
        self._keeps = "logits_to_keep" in inspect.signature(called(module).forward).parameters

    def part_of(self, name: str) -> str:
        return "policy"

    def trains(self, name: str) -> bool:
        if self._trunk is not None:
            return name in self._trunk.trained
        return not has_adapters(self._model) or is_adapter(name)

    @property
    def beside(self) -> dict[str, nn.Module]:
        """With adapters, base weights and adapters apart: a checkpoint's model has them merged, and
        to go on they are needed as they are."""
        return {WITH_ADAPTERS: self._model} if has_adapters(self._model) else {}

    def evaluate(
        self, episodes: Sequence[Episode], temperature: float, queries: bool = False
    ) -> TokenBatch:
        """The query of an answer is all that stands before it, remembered interactions
        included."""
        rows = self._rows(episodes)
        if not rows:
            return self._nothing(queries)
        lengths = [len(row.ids) for row in rows]
        passes = list(in_passes(lengths, self.micro_batch_tokens))
        compute = pass_computer(lengths, self.micro_batch_tokens)
        ordered = [rows[i] for chosen in passes for i in chosen]
        parts = [
            compute(self._answers, [rows[i] for i in chosen], temperature, queries)
            for chosen in passes
        ]
        return TokenBatch(
            torch.cat([part.log_probs for part in parts]),
            torch.cat([part.entropy for part in parts]),
            [row.action for row in ordered],
            torch.tensor([len(row.ids) - row.start for row in ordered], device=self._group.device),
            read=sum(lengths),
            queries=torch.cat([part.contexts for part in parts]) if queries else None,
            query_lengths=torch.tensor(
                [max(0, row.start - 1) for row in ordered], device=self._group.device
            )
            if queries
            else None,
        )

    def ended(self, ids: Sequence[int]) -> bool:
        return ids[-1] == self.memory.end

    def _rows(self, episodes: Sequence[Episode]) -> list[Row]:
        rows = []
        for i, episode in enumerate(episodes):
            contexts = self.memory.contexts(episode)
            for k, (action, context) in enumerate(zip(episode.actions, contexts, strict=False)):
                rows.append(Row((i, k), [*context, *action.ids], len(context)))
        return rows

    def _answers(self, rows: Sequence[Row], temperature: float, queries: bool) -> Answers:
        """One forward pass."""
        tokens, mask = pad([row.ids for row in rows])
        starts = torch.tensor([row.start for row in rows])
        target = torch.arange(1, tokens.shape[1])
        answered = (target >= starts[:, None]) & mask[:, 1:]
        wanted = mask[:, 1:] if queries else answered
        first = 0 if queries else int(starts.min()) - 1
        device = self._group.device
        logits = self._logits(rows, tokens, first)[wanted[:, first:].to(device)]
        log_probs = token_log_probs(logits, tokens[:, 1:][wanted].to(device), temperature)
        contexts = log_probs.new_zeros(len(rows))
        if not queries:
            return Answers(log_probs, token_entropy(logits, temperature), contexts)
        asked = (wanted & ~answered).to(device)
        in_answer = answered[wanted].to(device)
        contexts = contexts.index_add(0, asked.nonzero()[:, 0], log_probs[~in_answer])
        return Answers(
            log_probs[in_answer], token_entropy(logits[in_answer], temperature), contexts
        )

    def _logits(self, rows: Sequence[Row], tokens: Tensor, first: int) -> Tensor:
        """Logits at positions from `first` to the last but one, [rows, positions, vocabulary].
        tokens: ids of the rows, padded."""
        width, device = tokens.shape[1], self._group.device
        given: dict[str, Any] = {}
        if self._keeps:
            given["logits_to_keep"] = torch.arange(first, width - 1, device=device)
        with self._as_it_is(rows, width):
            logits: Tensor = self._model(
                input_ids=tokens.to(device), use_cache=False, **given
            ).logits
        return logits if self._keeps else logits[:, first : width - 1]

    def _as_it_is(self, rows: Sequence[Row], width: int) -> AbstractContextManager[None]:
        if self._trunk is not None:
            keep = isinstance(self._model, SharedTrunk)
            return self._trunk.reading([row.ids for row in rows], width, keep)
        return adapters_off(self._model) if self._plain else nullcontext()

    def _nothing(self, queries: bool) -> TokenBatch:
        device = self._group.device
        trained = [p.sum() for p in self._model.parameters() if p.requires_grad]
        nothing = torch.stack(trained).sum() * 0.0 if trained else torch.zeros((), device=device)
        empty = nothing.expand(0)
        lengths = torch.empty(0, dtype=torch.long, device=device)
        return TokenBatch(
            empty,
            empty,
            [],
            lengths,
            queries=empty if queries else None,
            query_lengths=lengths if queries else None,
        )

    @torch.no_grad()
    def log_probs(self, episodes: Sequence[Episode], temperature: float) -> list[list[Tensor]]:
        found: list[list[Tensor]] = [[torch.empty(0)] * len(one.actions) for one in episodes]
        if self._trunk is not None and isinstance(self._model, SharedTrunk):
            self._trunk.forget()
        batch = self.evaluate(episodes, temperature)
        parts = batch.log_probs.split(batch.lengths.tolist())
        for (i, action), values in zip(batch.actions, parts, strict=True):
            found[i][action] = values
        return found

    def observe(self, episodes: Sequence[Episode], metrics: Metrics) -> None:
        """There is no state but the tokens themselves."""

    def frozen_copy(self) -> CausalPolicy:
        if has_adapters(self._model):
            return self._like(self._model, plain=True)
        if self._trunk is not None:
            return self._like(SharedTrunk(self._model, self._trunk.trained))
        return self._like(copy.deepcopy(self._model).requires_grad_(False))

    def _like(self, module: Any, plain: bool = False) -> CausalPolicy:
        return CausalPolicy(
            module,
            self.memory,
            self._group,
            self._value_head,
            plain,
            self.micro_batch_tokens,
            self._trunk,
        )

    def value_function(self, reads: CriticInput, tokens: bool = False) -> CausalCritic:
        return CausalCritic(self, self._value_head, self._group, tokens)

    def states(self, spans: Sequence[Span]) -> Tensor:
        """Hidden states of the last layer at the positions of each span, [positions, width]; with
        gradient where gradients are on."""
        return hidden_states(self._model, spans, self._group.device, self.micro_batch_tokens)


class CausalCritic:
    """The value of a prompt, of a query or to write memory after, from the hidden state at its end.
    tokens: a value for each token of an action, from the hidden state at the position before it;
    that of the first one is the prompt's.

    body "policy": hidden states are those of the weights that sampled, computed once per batch, so
    the values of a batch do not move while the policy learns from it; only the head is trained.
    Without `detach` they are those of the present weights, which learn from the value loss as well.
    body "own": a copy of the model that is trained with the head.
    """

    def __init__(
        self, policy: CausalPolicy, settings: ValueHeadSettings, group: Group, tokens: bool = False
    ):
        self._policy, self._group, self._tokens = policy, group, tokens
        self.module = nn.Module()
        width, own = int(policy.module.config.hidden_size), settings.body == "own"
        self._head = ValueHead(width, settings.layers, settings.detach and not own).to(group.device)
        self.loss_in_policy = 0.0 if settings.detach else settings.loss_weight
        self.module.add_module("head", self._head)
        self._own: Any = None
        if own:
            self._own = copy.deepcopy(policy.module)
            self.module.add_module("body", self._own)

    def memories(self, episodes: Sequence[Episode]) -> list[Tensor] | None:
        if self._own is not None:
            return None
        if not episodes:
            return []
        spans = [[*self._taken(e), *self._beyond(e)] for e in episodes]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.loss_in_policy > 0):
            states = self._policy.states([span for each in spans for span in each])
        return list(states.split([sum(span.last for span in each) for each in spans]))

    def evaluate(
        self, episodes: Sequence[Episode], memories: Sequence[Tensor] | None = None
    ) -> Tensor:
        if not episodes:
            trained = [p.sum() for p in self.module.parameters() if p.requires_grad]
            return (torch.stack(trained).sum() * 0.0).expand(0)
        if memories is None:
            return self._values([span for e in episodes for span in self._taken(e)])
        pairs = zip(memories, episodes, strict=True)
        # Without the state after the last answer of an episode that was cut off.
        return self._head(torch.cat([each[:-1] if e.truncated else each for each, e in pairs]))

    def begin(self, value: float) -> None:
        self._head.begin(value)

    def beyond(
        self, episodes: Sequence[Episode], memories: Sequence[Tensor] | None = None
    ) -> Tensor:
        if memories is None:
            return self._values([span for e in episodes for span in self._beyond(e)])
        return self._head(torch.stack([each[-1] for each in memories]))

    def _taken(self, episode: Episode) -> list[Span]:
        """The positions that values of an episode's actions are read at."""
        contexts = self._policy.memory.contexts(episode)
        pairs = zip(episode.actions, contexts, strict=False)  # the last context has no answer
        if not self._tokens:
            return [Span(context, 1) for _, context in pairs]
        return [Span([*context, *action.ids[:-1]], len(action.ids)) for action, context in pairs]

    def _beyond(self, episode: Episode) -> list[Span]:
        """The position of the prompt that would have come next, where there is one."""
        if not episode.truncated:
            return []
        return [Span(self._policy.memory.contexts(episode)[-1], 1)]

    def _values(self, spans: Sequence[Span]) -> Tensor:
        limit = self._policy.micro_batch_tokens
        return self._head(hidden_states(self._own, spans, self._group.device, limit))


class Span(NamedTuple):
    """The `last` positions of a sequence."""

    ids: list[int]
    last: int


def hidden_states(
    model: Any, spans: Sequence[Span], device: torch.device, limit: int = MICRO_BATCH_TOKENS
) -> Tensor:
    """Hidden states of the last layer at the positions of each span, [positions, width], span by
    span; with gradient where gradients are on. limit: tokens of one pass."""

    def states_of(some: Sequence[Span]) -> tuple[Tensor, ...]:
        tokens, _ = pad([span.ids for span in some])
        states = model.base_model(input_ids=tokens.to(device), use_cache=False).last_hidden_state
        ends = [len(span.ids) for span in some]
        return tuple(
            row[end - span.last : end] for row, span, end in zip(states, some, ends, strict=True)
        )

    lengths = [len(span.ids) for span in spans]
    found: dict[int, Tensor] = {}
    compute = pass_computer(lengths, limit)
    for chosen in in_passes(lengths, limit):
        found |= zip(chosen, compute(states_of, [spans[i] for i in chosen]), strict=True)
    return torch.cat([found[i] for i in range(len(spans))])


def pass_computer(lengths: Sequence[int], limit: int) -> Callable[..., Any]:
    """Calls the function of one pass. With gradients and more than `limit` tokens in all, what it
    computes is let go of, and is computed anew when the backward pass comes to it."""
    if torch.is_grad_enabled() and sum(lengths) > limit:
        return partial(checkpoint, use_reentrant=False)
    return lambda function, *given: function(*given)


def in_passes(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices of sequences in groups of like length, each of at most `limit` tokens with padding;
    a longer sequence is a group by itself."""
    for group in by_width(lengths, CALL_COST):
        rows = max(1, limit // max(lengths[i] for i in group))
        for start in range(0, len(group), rows):
            yield group[start : start + rows]


def adapted(module: nn.Module, settings: CausalModel) -> nn.Module:
    """The model as it is trained: with adapters where the settings ask for them."""
    if settings.lora is not None:
        add_lora(module, settings.lora)
    return module
