"""Keys and values of slots."""

from __future__ import annotations

import torch

from rollout.policies.reactive.cache import KeyValues

SHAPE = (2, 6, 3, 40, 16)  # layers, rows, heads, positions, head_dim


def test_they_begin_at_zero_and_a_row_is_moved_and_cleared_without_the_others() -> None:
    cache = KeyValues(SHAPE, torch.device("cpu"), torch.float32)
    assert cache.keys.shape == cache.values.shape == SHAPE
    assert not cache.keys.any()
    assert not cache.values.any()
    filled = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(0))
    cache.keys[:], cache.values[:] = filled
    cache.move(5, 1, 7)
    cache.clear(4)
    for now, before in zip((cache.keys, cache.values), filled, strict=True):
        assert torch.equal(now[:, 1, :, :7], before[:, 5, :, :7])
        assert torch.equal(now[:, 1, :, 7:], before[:, 1, :, 7:])
        assert not now[:, 4].any()
        assert torch.equal(now[:, [0, 2, 3, 5]], before[:, [0, 2, 3, 5]])
