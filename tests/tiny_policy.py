"""A policy of a few numbers in float64, for tests of algorithms: exact, and seen through at a
glance.

The log-probability of a token depends on the query's first token and the token before it. Nothing
of it knows of memory, and nothing of the algorithms knows of it.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from common.config.algorithms import CriticInput
from common.config.mrl import MRL
from common.episode import Episode, Turn
from common.telemetry.metrics import Metrics
from learner.parallel.group import Group, OneRank
from learner.parallel.precision import Precision
from learner.policies.protocol import TokenBatch
from learner.rl.algorithms.table import ALGORITHMS
from learner.rl.update import Update

VOCABULARY, END = 6, 0
T = TypeVar("T")


class TinyModel(nn.Module):
    """Logits of the next token: a row for the query's first token plus one for the token before
    it."""

    def __init__(self, seed: int = 0, spread: float = 0.7):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        for name in ("asked", "before"):
            values = spread * torch.randn(VOCABULARY, VOCABULARY, generator=draw)
            setattr(self, name, nn.Parameter(values.double()))

    def forward(self, query: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """[tokens, vocabulary]: log-probabilities of each token and of what might have stood there,
        after the query's last token."""
        before = [query[-1], *tokens[:-1]]
        return (self.asked[query[0]] + self.before[before]).log_softmax(-1)


class TinyPolicy:
    def __init__(self, module: TinyModel):
        self.module = module

    def part_of(self, name: str) -> str:
        return "all"

    def trains(self, name: str) -> bool:
        return True

    @property
    def beside(self) -> dict[str, nn.Module]:
        return {}

    def evaluate(
        self, episodes: Sequence[Episode], temperature: float, queries: bool = False
    ) -> TokenBatch:
        nothing = (self.module.asked * 0.0).sum().expand(0)
        log_probs, entropy, asked, answers, lengths, read = (
            [nothing],
            [nothing],
            [nothing],
            [],
            [],
            [],
        )
        for i, episode in enumerate(episodes):
            for k, turn in enumerate(episode.answered):
                found = self.module(turn.query_ids, turn.answer_ids)
                log_probs.append(found[range(len(turn.answer_ids)), list(turn.answer_ids)])
                entropy.append(-(found.exp() * found).sum(-1))
                first, *others = turn.query_ids
                of_query = self.module([first], others)[range(len(others)), others]
                asked.append(of_query.sum().reshape(1))
                answers.append((i, k))
                lengths.append(len(turn.answer_ids))
                read.append(len(others))
        return TokenBatch(
            torch.cat(log_probs),
            torch.cat(entropy),
            answers,
            torch.tensor(lengths, dtype=torch.long),
            queries=torch.cat(asked) if queries else None,
            query_lengths=torch.tensor(read, dtype=torch.long) if queries else None,
        )

    def ended(self, ids: Sequence[int]) -> bool:
        return ids[-1] == END

    @torch.no_grad()
    def log_probs(self, episodes: Sequence[Episode], temperature: float) -> list[list[Tensor]]:
        return [
            [
                self.module(turn.query_ids, turn.answer_ids)[
                    range(len(turn.answer_ids)), list(turn.answer_ids)
                ]
                for turn in episode.answered
            ]
            for episode in episodes
        ]

    def observe(self, episodes: Sequence[Episode], metrics: Metrics) -> None:
        """There is no state."""

    def frozen_copy(self) -> TinyPolicy:
        return TinyPolicy(copy.deepcopy(self.module).requires_grad_(False))

    def value_function(self, reads: CriticInput, tokens: bool = False) -> Any:
        return TinyCritic(tokens)


class TinyCritic:
    """A value for each first token of a query; with `tokens`, one for what stands before each token
    of an answer."""

    loss_in_policy = 0.0

    def __init__(self, tokens: bool = False) -> None:
        self._tokens = tokens
        self.module = nn.Embedding(VOCABULARY, 1)
        nn.init.zeros_(self.module.weight)

    def memories(self, episodes: Sequence[Episode]) -> None:
        return None

    def evaluate(self, episodes: Sequence[Episode], memories: Any = None) -> Tensor:
        asked = [
            token
            for episode in episodes
            for turn in episode.answered
            for token in (
                [turn.query_ids[-1], *turn.answer_ids[:-1]] if self._tokens else turn.query_ids[:1]
            )
        ]
        return self.module(torch.tensor(asked, dtype=torch.long))[:, 0]

    @torch.no_grad()
    def begin(self, value: float) -> None:
        self.module.weight.fill_(value)

    def beyond(self, episodes: Sequence[Episode], memories: Any = None) -> Tensor:
        last = torch.tensor([episode.next_query_ids[-1] for episode in episodes], dtype=torch.long)
        return self.module(last)[:, 0]


def tiny_update(
    settings: MRL, module: TinyModel, reference: TinyModel | None = None, group: Group | None = None
) -> Update:
    """An update by plain gradient descent: AdamW would hide the size of a gradient."""
    algorithm = ALGORITHMS[settings.algorithm](settings.algorithm_settings, 1.0)
    update = Update(
        TinyPolicy(module), algorithm, settings, 10, 1.0, 3, group or OneRank(), Metrics()
    )
    if reference is not None:
        update.reference = TinyPolicy(copy.deepcopy(reference).requires_grad_(False))
    trainer = update.policy_trainer
    held = [
        {key: group[key] for key in ("params", "lr", "peak")}
        for group in trainer.adamw.param_groups
    ]
    trainer.adamw = torch.optim.SGD(held)  # type: ignore[assignment]
    return update


def tiny_episode(place: int, module: TinyModel, turns: Sequence[tuple[Any, ...]]) -> Episode:
    """turns: (query, answer, reward) each, sampled by `module`; a reward of None was not scored."""
    made = [Turn([1], [2], [], [])]
    for query, answer, reward in turns:
        found = module(query, answer).detach()
        recorded = [float(row[token]) for row, token in zip(found, answer, strict=True)]
        made.append(Turn(query, answer, recorded, [], reward=reward))
    return Episode(str(place), str(place), 0, tuple(made), 0, status="scored", batch_index=place)


class ThreadRank:
    """One of several ranks that are threads of this process."""

    device = torch.device("cpu")
    precision = Precision()

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, parts: list[Any]):
        self.rank, self.size, self._barrier, self._parts = rank, size, barrier, parts

    def sum(self, tensor: Tensor) -> Tensor:
        return self._all(tensor).sum(0)

    def max(self, tensor: Tensor) -> Tensor:
        return self._all(tensor).amax(0)

    def _all(self, tensor: Tensor) -> Tensor:
        self._parts[self.rank] = tensor.detach().clone()
        self._barrier.wait()
        found = torch.stack(self._parts)
        self._barrier.wait()
        return found


def on_ranks(count: int, work: Callable[[Group], T]) -> list[T]:
    """What `work` returns on each of `count` ranks. A rank that asks for another collective than
    the others, or for fewer, ends the test within 20 seconds."""
    barrier, parts = threading.Barrier(count, timeout=20), [None] * count
    with ThreadPoolExecutor(count) as pool:
        ranks = [ThreadRank(rank, count, barrier, parts) for rank in range(count)]
        return list(pool.map(work, ranks))
