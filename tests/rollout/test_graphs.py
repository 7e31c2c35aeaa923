from __future__ import annotations

import torch

from rollout.policies.reactive.cuda_graphs import StepGraphs, power_of_two


def test_on_a_gpu_shapes_are_few() -> None:
    graphs = StepGraphs(torch.device("cuda"), rows=1024, positions=704)
    shapes = {
        graphs.reach(rows, length)
        for rows in range(1, 1025)
        for length in (1, 63, 64, 65, 300, 704)
    }
    assert {reach.rows for reach in shapes} == {8, 16, 32, 64, 128, 256, 512, 1024}
    assert {reach.positions for reach in shapes} == {64, 128, 320, 704}
    assert [power_of_two(count) for count in (1, 8, 9, 64, 65)] == [8, 8, 16, 64, 128]


def test_on_a_cpu_shapes_are_rounded_as_little_as_results_need() -> None:
    graphs = StepGraphs(torch.device("cpu"), rows=1024, positions=704)
    assert graphs.reach(3, 17) == (8, 32)
    assert graphs.reach(1021, 704) == (1024, 704)


def test_on_a_cpu_nothing_is_recorded() -> None:
    graphs = StepGraphs(torch.device("cpu"), rows=16, positions=64)
    calls: list[int] = []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.tensor(float(len(calls)))

    assert [float(graphs.run("same", compute)) for _ in range(3)] == [1.0, 2.0, 3.0]
