"""Keys and values of the tokens that an answer in progress has behind it, one row per slot, allocated once.

Rows in use are the first ones and positions in use are the first ones, so what a step reads is a slice, never a gather. Positions
past a row's own are masked: they hold padding, or what another episode left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from common.models.attention import Attention
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

    def clear(self, row: int) -> None:
        self.keys[:, row] = 0
        self.values[:, row] = 0


LATE_CALL = 4096
"""Positions, summed over rows, that a CPU attends over in the time that a second call of attention takes by itself."""


class Prefill:
    """Cache for whole prompts from position 0 on, right-padded, of any rows."""

    def __init__(self, buffers: KeyValueBuffers, rows: Tensor, tokens: int):
        self.rows = rows
        self.positions = torch.arange(tokens, device=rows.device)
        self.keys, self.values = buffers.keys[:, :, :, :tokens], buffers.values[:, :, :, :tokens]

    def attend(self, layer: int, attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        self.keys[layer].index_copy_(0, self.rows, keys)
        self.values[layer].index_copy_(0, self.rows, values)
        return attention.attend(queries, keys, values, causal=True)


class Reach(NamedTuple):
    """How far a step looks back. Most answers are short and a few are long: were all to look back as far as the longest, most of what
    is read would be padding."""

    rows: int
    """Rows of the step."""
    positions: int
    """What all rows look back over."""
    late: tuple[int, ...] = ()
    """Rows that are further on, and look back over `longest`."""
    longest: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int], rows: int) -> Reach:
        """The one that reads least. lengths: positions filled after the step, of the rows in use, which are the first of `rows`."""
        rounded = [round_up(length, TOKENS) for length in lengths]
        longest = max(rounded)
        best, positions = rows * longest - LATE_CALL, longest
        for candidate in set(rounded):
            # Late rows are copied together first: read, written, and read again.
            cost = rows * candidate + 3 * longest * sum(length > candidate for length in rounded)
            if cost < best:
                best, positions = cost, candidate
        if positions == longest:
            return cls(rows, longest)
        return cls(rows, positions, tuple(row for row, length in enumerate(rounded) if length > positions), longest)


class Step:
    """Cache for one new token in each of the first rows, each at a position of its own."""

    def __init__(self, buffers: KeyValueBuffers, positions: Tensor, reach: Reach):
        """positions: int64 [reach.rows]."""
        rows = reach.rows
        self.positions = positions[:, None]
        heads = torch.arange(rows * buffers.heads, device=positions.device)
        self._targets = heads * buffers.tokens + positions.repeat_interleave(buffers.heads)
        self._flat = buffers.keys.flatten(1, 3), buffers.values.flatten(1, 3)
        self._keys, self._values = buffers.keys[:, :rows], buffers.values[:, :rows]
        self._reach = reach
        self._mask = _visible(positions, reach.positions, buffers.keys.dtype)
        self._late = torch.tensor(reach.late, device=positions.device) if reach.late else None
        if self._late is not None:
            self._late_mask = _visible(positions[self._late], reach.longest, buffers.keys.dtype)

    def attend(self, layer: int, attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        flat_keys, flat_values = self._flat
        flat_keys[layer].index_copy_(0, self._targets, keys.flatten(0, 2))
        flat_values[layer].index_copy_(0, self._targets, values.flatten(0, 2))
        keys, values = self._keys[layer], self._values[layer]
        near = self._reach.positions
        seen = attention.look(queries, keys[:, :, :near], values[:, :, :near], self._mask)
        if self._late is not None:
            far = self._reach.longest
            late_keys, late_values = (each[:, :, :far].index_select(0, self._late) for each in (keys, values))
            seen[self._late] = attention.look(queries.index_select(0, self._late), late_keys, late_values, self._late_mask)
        return attention.project(seen)


def _visible(positions: Tensor, reach: int, dtype: torch.dtype) -> Tensor:
    """What each row may look at, [rows, 1, 1, reach], as a number to add: attention would make one of a bool mask in every layer."""
    visible = torch.arange(reach, device=positions.device) <= positions[:, None]
    return torch.zeros(visible.shape, dtype=dtype, device=positions.device).masked_fill_(~visible, -torch.inf)[:, None, None]
