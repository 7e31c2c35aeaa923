"""Decoding steps as CUDA graphs: one launch in place of a few hundred, which on a GPU is what a
step of a small model costs.

A graph holds addresses and shapes, so a step must read and write buffers that stay where they are,
and there is a graph for each shape. Shapes are rounded up until few are left. On a CPU nothing is
recorded and shapes are rounded only as far as results need
(common/models/layers/batch_invariant.py).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from common.models.layers.batch_invariant import ROWS, TOKENS, round_up
from rollout.policies.reactive.cache import Reach

LENGTHS = 64
"""Positions attended over on a GPU are a multiple of this."""


def power_of_two(count: int) -> int:
    """The least one that is not below `count` and not below `ROWS`."""
    return max(ROWS, 1 << (count - 1).bit_length())


class StepGraphs:
    """device: where steps are computed; rows, positions: what the buffers have room for."""

    def __init__(self, device: torch.device, rows: int, positions: int):
        self._rows, self._positions = rows, positions
        self._record = device.type == "cuda"
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def reach(self, rows: int, longest: int) -> Reach:
        """Shape of a step of so many rows, the longest of which is `longest` tokens long after
        it."""
        if not self._record:
            return Reach(
                min(round_up(rows, ROWS), self._rows),
                min(round_up(longest, TOKENS), self._positions),
            )
        return Reach(
            min(power_of_two(rows), self._rows), min(round_up(longest, LENGTHS), self._positions)
        )

    def run(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` returns, which on a GPU is recorded at the first call of a key and
        replayed at later ones.

        key: all that the shapes in `compute` depend on. The result is overwritten by the next call
        of the same key.
        """
        if not self._record:
            return compute()
        if key in self._graphs:
            graph, result = self._graphs[key]
            graph.replay()
            return result
        # The first call is a real step, on the side stream that capture wants its libraries warmed
        # up on; recording computes nothing.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            first = compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = compute()
        self._graphs[key] = (graph, result)
        return first
