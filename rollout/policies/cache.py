"""Keys and values of the tokens that an answer in progress has behind it, one row per slot, allocated once.

Rows in use are the first ones and positions in use are the first ones, so what a step reads is a slice, never a gather. Positions
past a row's own are masked: they hold padding, or what another episode left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.models.configuration import RxTConfig
from common.models.rows import TOKENS, round_up


class KeyValueBuffers:
    def __init__(self, config: RxTConfig, slots: int, device: torch.device, dtype: torch.dtype):
        self.tokens, self.heads = config.positions, config.kv_heads
        shape = (config.layers, slots, config.kv_heads, self.tokens, config.head_dim)
        # Zeros, not `empty`: a masked position still takes part in the sum with weight 0, and 0 × NaN is NaN.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` positions of one row to another."""
        for buffer in (self.keys, self.values):
            buffer[:, target, :, :tokens] = buffer[:, source, :, :tokens]


class Prefill:
    """Cache for whole prompts from position 0 on, right-padded, of any rows."""

    mask = None

    def __init__(self, buffers: KeyValueBuffers, rows: Tensor, tokens: int):
        self.rows = rows
        self.positions = torch.arange(tokens, device=rows.device)
        self.keys, self.values = buffers.keys[:, :, :, :tokens], buffers.values[:, :, :, :tokens]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[layer].index_copy_(0, self.rows, keys)
        self.values[layer].index_copy_(0, self.rows, values)
        return keys, values


class Step:
    """Cache for one new token in each of the first rows, each at a position of its own."""

    def __init__(self, buffers: KeyValueBuffers, positions: Tensor, longest: int):
        """positions: int64 [rows]; longest: the largest of them plus one, known to the host."""
        rows, longest = len(positions), round_up(longest, TOKENS)
        self.positions = positions[:, None]
        visible = torch.arange(longest, device=positions.device) <= self.positions
        # As a number to add: attention would turn a bool mask into one again in every layer.
        mask = torch.zeros(visible.shape, dtype=buffers.keys.dtype, device=positions.device).masked_fill_(~visible, -torch.inf)
        self.mask = mask[:, None, None]
        heads = torch.arange(rows * buffers.heads, device=positions.device)
        self._targets = heads * buffers.tokens + positions.repeat_interleave(buffers.heads)
        self._flat = buffers.keys.flatten(1, 3), buffers.values.flatten(1, 3)
        self._keys, self._values = buffers.keys[:, :rows, :, :longest], buffers.values[:, :rows, :, :longest]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        flat_keys, flat_values = self._flat
        flat_keys[layer].index_copy_(0, self._targets, keys.flatten(0, 2))
        flat_values[layer].index_copy_(0, self._targets, values.flatten(0, 2))
        return self._keys[layer], self._values[layer]
