"""The policy as the learner sees it: what an update asks of it, whatever model it is.

Losses, advantages and algorithms (`learner/rl`) are written against these classes alone. A policy
for another kind of model is one file beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from common.config.algorithms import CriticInput
from common.episode import Episode
from common.telemetry.metrics import Metrics
from learner.parallel.optimizer import LossTerm


@dataclass(frozen=True)
class TokenBatch:
    """The actions of some episodes under the present weights, token by token: their answers, and
    what was written to a text memory (`Episode.actions`).

    Tokens lie flat, action after action; actions may come in any order. Without episodes every
    tensor is empty and the terms are zeros, so that a rank without work takes part in the step.
    """

    log_probs: Tensor
    """[tokens], at the temperature asked for; with gradient."""
    entropy: Tensor
    """[tokens], in nats; with gradient."""
    actions: list[tuple[int, int]]
    """(episode, action) of each, as positions in what was evaluated."""
    lengths: Tensor
    """int64 [actions]: tokens of each."""
    terms: list[LossTerm] = field(default_factory=list)
    """Losses of the policy's own: of its memory, of its router."""
    read: int = 0
    """Tokens that were decoded, queries included."""
    queries: Tensor | None = None
    """[actions]: log-probability of each action's query, but for its first token, with gradient;
    None where it was not asked for."""
    query_lengths: Tensor | None = None
    """int64 [actions]: tokens of each that `queries` counts."""

    def spread(self, table: Tensor) -> Tensor:
        """table: [episodes, actions] → [tokens], each token that of its action."""
        return torch.repeat_interleave(self.per_action(table), self.lengths)

    def of_tokens(self, per_token: Tensor) -> Tensor:
        """per_token: [episodes, actions, longest action] → [tokens]."""
        present = torch.arange(per_token.shape[-1], device=self.lengths.device)
        return self.per_action(per_token)[present < self.lengths[:, None]]

    def per_action(self, table: Tensor) -> Tensor:
        """table: [episodes, actions, …] → [actions, …]."""
        at = torch.tensor(self.actions, dtype=torch.long, device=table.device).view(-1, 2)
        return table[at[:, 0], at[:, 1]]

    def totals(self, per_token: Tensor) -> Tensor:
        """per_token: [tokens] → [actions], their sums."""
        action = torch.repeat_interleave(
            torch.arange(len(self.actions), device=self.lengths.device), self.lengths
        )
        return per_token.new_zeros(len(self.actions)).index_add(0, action, per_token)

    def flat(self, per_action: Sequence[Sequence[Sequence[float] | Tensor]]) -> Tensor:
        """Figures of tokens, by episode and action → [tokens]."""
        rows = [per_action[episode][action] for episode, action in self.actions]
        parts = [row if isinstance(row, Tensor) else torch.tensor(row) for row in rows]
        device = self.log_probs.device
        return (
            torch.cat([part.to(device) for part in parts]) if parts else torch.empty(0).to(device)
        )


class ValueFunction(Protocol):
    """A critic: what reward each query promises, or, one of tokens, what each token of an answer
    promises at the position before it. The same of the prompts that a text memory is written
    after."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def loss_in_policy(self) -> float:
        """Coefficient of its losses in the policy's loss: where it is not 0, the policy's weights
        learn from them too, through `memories`."""
        ...

    def memories(self, episodes: Sequence[Episode]) -> list[Tensor] | None:
        """Memory that each query of each episode was answered with, by the policy's present
        weights, without gradient: [actions, …], one more where the episode was cut off. Of a
        critic of tokens, [tokens, …] in the same way. None for a critic that reads none.

        Asked for once per batch, before the policy learns from it: values of one batch must not
        move because memories do. Where `loss_in_policy` is not 0 they do, and are asked for before
        each step, with gradient where gradients are on.
        """
        ...

    def evaluate(
        self, episodes: Sequence[Episode], memories: Sequence[Tensor] | None = None
    ) -> Tensor:
        """[actions], or [tokens], episode by episode and action by action; with gradient where
        gradients are on. memories: those of the episodes, as above."""
        ...

    def begin(self, value: float) -> None:
        """Give this value to every query. Called before anything is learnt."""
        ...

    def beyond(
        self, episodes: Sequence[Episode], memories: Sequence[Tensor] | None = None
    ) -> Tensor:
        """[episodes], all of which were cut off: the value of the query that would have come
        next."""
        ...


class TrainablePolicy(Protocol):
    """A policy whose weights are trained."""

    @property
    def module(self) -> nn.Module:
        """The module that is published to rollout workers and saved."""
        ...

    def part_of(self, name: str) -> str:
        """The part of the module that its parameter `name` belongs to; phases of training name
        parts."""
        ...

    def trains(self, name: str) -> bool:
        """Whether a parameter, by its name in the module, is ever trained."""
        ...

    @property
    def beside(self) -> dict[str, nn.Module]:
        """Modules that a checkpoint holds beside the model, by name, because the policy could not
        go on from the model alone."""
        ...

    def evaluate(
        self, episodes: Sequence[Episode], temperature: float, queries: bool = False
    ) -> TokenBatch:
        """All actions of the episodes, by the present weights. queries: whether the batch is to
        have the log-probabilities of the queries, too."""
        ...

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the policy ended an action itself, by its end token, rather than its length
        limit. ids: those of the action."""
        ...

    def log_probs(self, episodes: Sequence[Episode], temperature: float) -> list[list[Tensor]]:
        """Log-probabilities of each action's tokens, by episode and action; without gradient."""
        ...

    def observe(self, episodes: Sequence[Episode], metrics: Metrics) -> None:
        """Record what the present weights do to the policy's own state, over a sample of the
        batch: where `episodes`, this rank's share, has none of it, nothing is recorded."""
        ...

    def frozen_copy(self) -> TrainablePolicy:
        """A policy of the same weights that is never trained: a reference."""
        ...

    def value_function(self, reads: CriticInput, tokens: bool = False) -> ValueFunction:
        """A critic that starts from this policy's weights. Draws from torch's random state. tokens:
        whether it is one of tokens. Raises InputError where this policy has none."""
        ...
