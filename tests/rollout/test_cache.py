from __future__ import annotations

import random

import torch

from common.models.rows import ROWS, TOKENS, round_up
from rollout.policies.cache import LATE_CALL, Reach
from rollout.policies.graphs import StepGraphs, power_of_two


def test_every_row_looks_back_over_all_it_has() -> None:
    draw = random.Random(0)
    split = 0
    for _ in range(300):
        lengths = [min(500, max(1, round(draw.lognormvariate(3.2, 1.0)))) for _ in range(draw.randint(1, 200))]
        reach = Reach.of(lengths, round_up(len(lengths), ROWS))
        far = max(lengths)
        assert reach.rows % ROWS == reach.positions % TOKENS == reach.longest % TOKENS == 0
        for row, length in enumerate(lengths):
            assert length <= (reach.longest if row in reach.late else reach.positions)
        assert (reach.longest >= far) == bool(reach.late)
        if reach.late:
            split += 1
            saved = reach.rows * round_up(far, TOKENS) - reach.rows * reach.positions - 3 * reach.longest * len(reach.late)
            assert saved > LATE_CALL
    assert 0 < split < 300


def test_on_a_gpu_shapes_are_few() -> None:
    graphs = StepGraphs(torch.device("cuda"), rows=1024, positions=704)
    shapes = {graphs.reach([length] * rows) for rows in range(1, 1025) for length in (1, 63, 64, 65, 300, 704)}
    assert {reach.rows for reach in shapes} == {8, 16, 32, 64, 128, 256, 512, 1024}
    assert {reach.positions for reach in shapes} == {64, 128, 320, 704}
    assert [power_of_two(count) for count in (1, 8, 9, 64, 65)] == [8, 8, 16, 64, 128]


def test_on_a_cpu_nothing_is_recorded() -> None:
    graphs = StepGraphs(torch.device("cpu"), rows=16, positions=64)
    calls: list[int] = []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.tensor(float(len(calls)))

    assert [float(graphs.run("same", compute)) for _ in range(3)] == [1.0, 2.0, 3.0]
