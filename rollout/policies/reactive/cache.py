"""Keys and values for answers in progress, as PyTorch's attention takes them: those of an answer's
tokens and of its memory, one row per slot, allocated once.

Rows in use are the first ones and positions in use are the first ones, so what a step reads is a
slice, never a gather. What lies past a row's own positions, padding or what another episode left,
is never seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from common.models.layers.attention import Asking, SelfAttention, added_mask
from common.models.reactive.decoder import Sequences


class KeyValues:
    """keys, values: [layers, rows, kv_heads, positions, head_dim]."""

    def __init__(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype):
        # Zeros, not `empty`: where attention masks, a masked position still takes part in the sum
        # with weight 0, and 0 × NaN is NaN.
        self.keys, self.values = torch.zeros((2, *shape), device=device, dtype=dtype)

    def move(self, source: int, target: int, positions: int) -> None:
        """Copy the first `positions` of one row to another."""
        for buffer in (self.keys, self.values):
            buffer[:, target, :, :positions] = buffer[:, source, :, :positions]

    def clear(self, row: int) -> None:
        self.keys[:, row] = 0
        self.values[:, row] = 0


class Prefill(Sequences):
    """Context of whole prompts, right-padded, of any rows, leaves their keys and values in
    `past`."""

    def __init__(self, past: KeyValues, memory: KeyValues, rows: Tensor, rope: Tensor):
        super().__init__(rope, memory.keys[:, rows], memory.values[:, rows])
        self._past, self._rows = past, rows

    def tokens(self, layer: int, attention: SelfAttention, x: Tensor) -> Tensor:
        queries, keys, values = attention.queries_keys_values(x, self.rope)
        count = x.shape[1]
        self._past.keys[layer, :, :, :count].index_copy_(0, self._rows, keys)
        self._past.values[layer, :, :, :count].index_copy_(0, self._rows, values)
        return attention.see(queries, keys, values, causal=True)


class Reach(NamedTuple):
    """The shapes of a step: how many rows are computed, and over how many positions all of them
    look back."""

    rows: int
    positions: int


class Step:
    """Context of one new token in each of the first rows, each at a position of its own."""

    def __init__(
        self, past: KeyValues, memory: KeyValues, rope: Tensor, positions: Tensor, reach: Reach
    ):
        """rope: of all positions; positions: int64 [reach.rows]."""
        rows, heads, tokens = reach.rows, past.keys.shape[2], past.keys.shape[3]
        self._rope = rope[positions][:, None, None]
        self._targets = torch.arange(
            rows * heads, device=positions.device
        ) * tokens + positions.repeat_interleave(heads)
        self._flat = past.keys.flatten(1, 3), past.values.flatten(1, 3)
        self._past = tuple(
            each[:, :rows, :, : reach.positions] for each in (past.keys, past.values)
        )
        self._memory = memory.keys[:, :rows], memory.values[:, :rows]
        visible = torch.arange(reach.positions, device=positions.device) <= positions[:, None]
        self._mask = added_mask(visible, past.keys.dtype)[:, None, None]

    def tokens(self, layer: int, attention: SelfAttention, x: Tensor) -> Tensor:
        queries, keys, values = attention.queries_keys_values(x, self._rope)
        for flat, new in zip(self._flat, (keys, values), strict=True):
            flat[layer].index_copy_(0, self._targets, new.flatten(0, 2))
        keys, values = self._past
        return attention.see(queries, keys[layer], values[layer], self._mask)

    def memory(self, layer: int, attention: Asking, x: Tensor) -> Tensor:
        keys, values = self._memory
        return attention.see(attention.queries(x, self._rope), keys[layer], values[layer])
