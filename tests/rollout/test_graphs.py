"""Shapes of steps, by backend."""

from __future__ import annotations

import torch

from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from rollout.policies.reactive.cuda_graphs import CudaGraphs
from rollout.policies.reactive.torch_backend import TorchBackend

CPU = torch.device("cpu")
MODEL = ReactiveTransformer(RxTConfig(width=16, layers=1, slots=2, max_tokens=704))


def test_shapes_that_are_recorded_are_few() -> None:
    graphs = CudaGraphs(MODEL, 1024, CPU)
    shapes = {
        graphs.reach(rows, length)
        for rows in range(1, 1025)
        for length in (1, 63, 64, 65, 300, 704)
    }
    assert {reach.rows for reach in shapes} == {8, 16, 32, 64, 128, 256, 512, 1024}
    assert {reach.positions for reach in shapes} == {64, 128, 320, 704}
    assert [graphs.height(count) for count in (1, 8, 9, 64, 65)] == [8, 8, 16, 64, 128]


def test_other_shapes_are_rounded_as_little_as_results_need() -> None:
    backend = TorchBackend(MODEL, 1021, CPU)
    assert backend.rows == 1024
    assert backend.reach(3, 17) == (8, 32)
    assert backend.reach(1021, 704) == (1024, 704)


def test_what_is_not_recorded_is_computed_each_time() -> None:
    backend = TorchBackend(MODEL, 16, CPU)
    calls: list[int] = []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.tensor(float(len(calls)))

    assert [float(backend.run("same", compute)) for _ in range(3)] == [1.0, 2.0, 3.0]
