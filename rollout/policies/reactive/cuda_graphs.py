"""Backend `cuda_graphs`: decoding steps recorded on a GPU and replayed.

A step of a small model costs a few hundred launches; a recorded one costs a single launch.

A graph holds addresses and shapes, so a step must read and write buffers that stay where they are,
and there is a graph for each shape. Shapes are rounded up until few are left.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from common.models.layers.batch_invariant import ROWS, round_up
from common.models.reactive.model import ReactiveTransformer
from rollout.policies.reactive.cache import Reach
from rollout.policies.reactive.torch_backend import TorchBackend

LENGTHS = 64
"""Positions attended over are a multiple of this."""


class CudaGraphs(TorchBackend):
    name = "cuda_graphs"

    def __init__(self, model: ReactiveTransformer, slots: int, device: torch.device):
        super().__init__(model, slots, device)
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def height(self, rows: int) -> int:
        """The least power of two that is not below `rows` and not below `ROWS`."""
        return max(ROWS, 1 << (rows - 1).bit_length())

    def reach(self, active: int, longest: int) -> Reach:
        positions = min(round_up(longest, LENGTHS), self._model.config.positions)
        return Reach(min(self.height(active), self.rows), positions)

    def run(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
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
