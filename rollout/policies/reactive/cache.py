"""What an answer in progress looks at: keys and values of its own tokens and of its memory, one row
per slot, allocated once.

Rows in use are the first ones and positions in use are the first ones, so what a step reads is a
slice, never a gather. What lies past a row's own positions, padding or what another episode left,
is never seen.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.models.kernels.layers import Cache
from common.models.layers.attention import Attention, added_mask
from common.models.reactive.decoder import Sequences

LARGE_PAGE = 2**21
"""Bytes."""


class KeyValues:
    """keys, values: [layers, rows, kv_heads, positions, head_dim].

    by_dimension: whether both lie in memory with positions innermost, as kernels want them, float32
    on the CPU. Indexed alike either way.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int, int],
        device: torch.device,
        dtype: torch.dtype,
        by_dimension: bool,
    ):
        *rows, positions, head_dim = shape
        inner = (head_dim, positions) if by_dimension else (positions, head_dim)
        # Zeros, not `empty`: where attention masks, a masked position still takes part in the sum
        # with weight 0, and 0 × NaN is NaN.
        both = (2, *rows, *inner)
        keys, values = (
            _zeros_in_large_pages(both)
            if by_dimension
            else torch.zeros(both, device=device, dtype=dtype)
        )
        self.keys, self.values = (keys.mT, values.mT) if by_dimension else (keys, values)

    def layer(self, index: int) -> Cache:
        """One layer as kernels take it: [rows, kv_heads, head_dim, positions], of what is by
        dimension."""
        return Cache(self.keys[index].mT.numpy(), self.values[index].mT.numpy())

    def move(self, source: int, target: int, positions: int) -> None:
        """Copy the first `positions` of one row to another."""
        for buffer in (self.keys, self.values):
            buffer[:, target, :, :positions] = buffer[:, source, :, :positions]

    def clear(self, row: int) -> None:
        self.keys[:, row] = 0
        self.values[:, row] = 0


def _zeros_in_large_pages(shape: Sequence[int]) -> Tensor:
    """float32 zeros, in pages of 2 MB where the system has them to give.

    A step reads all that rows in use hold. For 64 rows of the benchmark's model that is 4,000 pages
    of 4 KB, twice as many as a core keeps the addresses of, and on a virtual machine to find one
    takes a walk through two tables.
    """
    size = math.prod(shape) * torch.float32.itemsize
    buffer = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        with suppress(OSError):  # which may be built without them
            buffer.madvise(mmap.MADV_HUGEPAGE)
    pages = np.frombuffer(buffer, np.uint8)  # which keeps the buffer, as the tensor keeps this
    start = -pages.ctypes.data % LARGE_PAGE
    return torch.from_numpy(pages[start : start + size].view(np.float32).reshape(shape))


class Prefill(Sequences):
    """Context of whole prompts, right-padded, of any rows, by PyTorch's attention: leaves their
    keys and values in `past`."""

    def __init__(self, past: KeyValues, memory: KeyValues, rows: Tensor, rope: Tensor):
        super().__init__(rope, memory.keys[:, rows], memory.values[:, rows])
        self._past, self._rows = past, rows

    def tokens(self, layer: int, attention: Attention, x: Tensor) -> Tensor:
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
    """Context of one new token in each of the first rows, each at a position of its own, by
    PyTorch's attention."""

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

    def tokens(self, layer: int, attention: Attention, x: Tensor) -> Tensor:
        queries, keys, values = attention.queries_keys_values(x, self._rope)
        for flat, new in zip(self._flat, (keys, values), strict=True):
            flat[layer].index_copy_(0, self._targets, new.flatten(0, 2))
        keys, values = self._past
        return attention.see(queries, keys[layer], values[layer], self._mask)

    def memory(self, layer: int, attention: Attention, x: Tensor) -> Tensor:
        keys, values = self._memory
        return attention.see(attention.queries(x, self._rope), keys[layer], values[layer])
