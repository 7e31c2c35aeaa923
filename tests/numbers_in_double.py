"""Numbers in double precision, for tests of the maths."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from learner.rl.advantages import Reduce


def double(values: Any, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64), double(expected), rtol=0, atol=tolerance
    )


def on_ranks(function: Callable[[Tensor, Reduce], Tensor], ranks: list[Tensor]) -> list[Tensor]:
    """function(x, reduce) of every rank at once, one thread each, with a `reduce` that really waits
    for all of them."""
    barrier, parts = threading.Barrier(len(ranks), timeout=30), list(ranks)

    def one(rank: int) -> Tensor:
        def reduce(tensor: Tensor) -> Tensor:
            parts[rank] = tensor
            barrier.wait()
            total = torch.stack(parts).sum(0)
            barrier.wait()
            return total

        return function(ranks[rank], reduce)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(one, range(len(ranks))))
