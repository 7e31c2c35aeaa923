"""Caches of rows, and the calls of kernels that fill and read them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from common.models.layers.batch_invariant import ROWS, round_up
from common.models.reactive.model import ReactiveTransformer
from rollout.policies.reactive.cache import Reach
from rollout.policies.reactive.cpu.decoder import CompiledDecoder
from rollout.policies.reactive.cpu.layers import Cache
from rollout.policies.reactive.cpu.memory import CompiledMemory


class CpuKernels:
    """See `rollout.policies.reactive.backend.Backend`.

    Weights are copied into the order in which products use them, by `refresh`. No conversation is
    padded to the length of another.
    """

    name = "cpu_kernels"

    def __init__(self, model: ReactiveTransformer, slots: int):
        config = self._config = model.config
        self._embedding = model.embedding
        # Few heights need few kernels of PyTorch for experts, and products of few rows round
        # otherwise: up to `ROWS` - 1 unused rows are computed along.
        self.rows = round_up(slots, ROWS)
        shape = config.layers, self.rows
        self._past = _caches(*shape, config.kv_heads, config.head_dim, config.positions)
        read_heads = config.cross_kv_heads or config.kv_heads
        self._read = _caches(*shape, read_heads, config.head_dim, config.slots)
        rope = model.decoder.rope(torch.device("cpu"))
        self._decoder = CompiledDecoder(model.decoder, self._past, self._read, rope)
        self._memory = CompiledMemory(model, rope)
        self._every_row = np.arange(self.rows)

    def refresh(self) -> None:
        self._decoder.refresh()
        self._memory.refresh()

    def reach(self, active: int, longest: int) -> Reach:
        """Each row looks back over its own positions only, so all steps of as many rows are
        alike."""
        return Reach(min(round_up(active, ROWS), self.rows), self._config.positions)

    def run(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        return compute()

    def read_memory(self, rows: Sequence[int], memories: Tensor) -> None:
        self._decoder.read_memory(memories, np.array(rows))

    def fill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        lengths = [len(prompt) for prompt in prompts]
        if not any(lengths):
            return
        ids = [token for prompt in prompts for token in prompt]
        positions = np.concatenate([np.arange(length) for length in lengths])
        ids += [0] * (-len(ids) % ROWS)
        embedded = self._embedding(torch.tensor(ids))
        self._decoder.fill(embedded, np.repeat(np.array(rows), lengths), positions)

    def logits(self, tokens: Tensor, positions: Tensor, reach: Reach) -> Tensor:
        rows = self._every_row[: reach.rows]
        hidden = self._decoder.hidden(self._embedding(tokens), rows, positions.numpy())
        return self._decoder.logits(hidden)

    def write(self, memories: Tensor, interactions: Sequence[Sequence[int]]) -> Tensor:
        return self._memory.write(memories, interactions)

    def move(self, source: int, target: int, positions: int) -> None:
        for caches, count in ((self._past, positions), (self._read, self._config.slots)):
            for cache in caches:
                for kept in cache:
                    kept[target, :, :, :count] = kept[source, :, :, :count]

    def clear(self, row: int) -> None:
        for cache in (*self._past, *self._read):
            for kept in cache:
                kept[row] = 0


def _caches(layers: int, rows: int, heads: int, width: int, positions: int) -> list[Cache]:
    """One for each layer, of zeros."""
    keys, values = np.zeros((2, layers, rows, heads, width, positions), np.float32)
    return [Cache(*pair) for pair in zip(keys, values, strict=True)]
