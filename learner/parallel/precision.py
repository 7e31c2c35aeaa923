"""Mixed precision of a learner rank (Micikevicius et al. 2018, arXiv 1710.03740).

Weights, gradients and the optimiser's state are float32 throughout. Matrix products are computed in
`dtype` by autocast; log-probabilities, values and losses in float32. With float16, whose smallest
number is 6e-8, a loss is multiplied by a scale before the backward pass and gradients are divided
by it after they are summed over ranks: a number that overflowed on one rank is then infinite on
all, so that all pass over the same steps and hold the same scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from common.config.run import LearnerType

Item = TypeVar("Item")

LOWEST_SCALE = 1.0
"""A gradient that is not finite at this scale is not so by the scale: it is an error."""
FIRST_SCALE = 2.0**16

_TYPES: dict[LearnerType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Precision:
    """Types that a rank computes in."""

    def __init__(self, dtype: LearnerType = "float32", device: torch.device | None = None):
        self._dtype, self._device = dtype, device or torch.device("cpu")

    def autocast(self) -> AbstractContextManager[object]:
        """A block whose matrix products are of this type. Weights are cast once in a block, so it
        must end before they change."""
        if self._dtype == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=_TYPES[self._dtype])

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each computed in a block of its own."""
        iterator = iter(items)
        while True:
            # Not around the yield: the block would still hold while the caller computes gradients.
            with self.autocast():
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def loss_scale(self) -> LossScale | None:
        """A new loss scale; None for a type that needs none."""
        return LossScale(self._device) if self._dtype == "float16" else None


class LossScale:
    """The scale of one optimiser's losses, by `torch.amp.GradScaler`: halved after a step that was
    passed over, doubled after 2,000 that were not."""

    def __init__(self, device: torch.device):
        self._scaler = torch.amp.GradScaler(device.type, init_scale=FIRST_SCALE)
        self._device = device

    def scaled(self, loss: Tensor) -> Tensor:
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients of an optimiser by the scale, once before each step."""
        # A rank that has no loss to scale must have a scale all the same.
        self._scaler.scale(torch.zeros((), device=self._device))
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """A step of the optimiser, whose gradients are finite."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def passed_over(self) -> bool:
        """Lower the scale after gradients that are not finite; False where that is not by the
        scale."""
        before = self._scaler.get_scale()
        self._scaler.update()
        return before > LOWEST_SCALE and self._scaler.get_scale() < before

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        held = self._scaler.state_dict()
        return {
            "scale": torch.tensor(held["scale"], dtype=torch.float64),
            "steps_since": torch.tensor(held["_growth_tracker"]),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._scaler.load_state_dict(
            self._scaler.state_dict()
            | {"scale": float(state["scale"]), "_growth_tracker": int(state["steps_since"])}
        )
