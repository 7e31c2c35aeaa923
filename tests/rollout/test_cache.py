"""Keys and values of slots: alike from outside whichever way they lie in memory."""

from __future__ import annotations

import gc

import pytest
import torch

from rollout.policies.reactive.cache import LARGE_PAGE, KeyValues

SHAPE = (2, 6, 3, 40, 16)  # layers, rows, heads, positions, head_dim


def key_values(by_dimension: bool) -> KeyValues:
    return KeyValues(SHAPE, torch.device("cpu"), torch.float32, by_dimension)


@pytest.mark.parametrize("by_dimension", [False, True])
def test_they_begin_at_zero_and_a_row_is_moved_and_cleared_without_the_others(
    by_dimension: bool,
) -> None:
    cache = key_values(by_dimension)
    assert cache.keys.shape == cache.values.shape == SHAPE
    assert not cache.keys.any()
    assert not cache.values.any()
    filled = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(0))
    cache.keys[:], cache.values[:] = filled
    gc.collect()  # whatever the memory belongs to must be kept by what lies in it
    cache.move(5, 1, 7)
    cache.clear(4)
    for now, before in zip((cache.keys, cache.values), filled, strict=True):
        assert torch.equal(now[:, 1, :, :7], before[:, 5, :, :7])
        assert torch.equal(now[:, 1, :, 7:], before[:, 1, :, 7:])
        assert not now[:, 4].any()
        assert torch.equal(now[:, [0, 2, 3, 5]], before[:, [0, 2, 3, 5]])


def test_what_kernels_read_begins_at_a_large_page_with_positions_innermost() -> None:
    cache = key_values(by_dimension=True)
    assert cache.keys.data_ptr() % LARGE_PAGE == 0
    cache.keys[1, 2, 0, 9, 4] = 3.0
    layer = cache.layer(1)
    assert layer.keys.shape == (6, 3, 16, 40)
    assert layer.keys.flags.c_contiguous
    assert layer.keys[2, 0, 4, 9] == 3.0
