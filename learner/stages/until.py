"""When a supervised stage ends by what it measures.

With `until`, the learning rate stays at its peak until the condition holds, the mean of the last
`WINDOW` steps being counted; then it decays over `decay_steps`, and the stage is over. `steps`
bounds it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from common.config.stages import SupervisedStage
from learner.parallel.group import Group
from learner.parallel.optimizer import learning_rate_factor

WINDOW = 20
"""Steps whose mean counts: one batch is chance."""


@dataclass(frozen=True, slots=True)
class UntilState:
    """State of the rule in a checkpoint."""

    recent: tuple[tuple[float, ...], ...] = ()
    """Values of the metrics in the last steps, in the order of the setting."""
    held_at: int | None = None
    """Steps done when the condition held; None: it has not."""

    def to_json(self) -> dict[str, Any]:
        return {"recent": [list(values) for values in self.recent], "held_at": self.held_at}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return cls(tuple(tuple(values) for values in record["recent"]), record["held_at"])


class Until:
    """The rule of a stage. The same on all ranks, which observe the same figures."""

    def __init__(self, stage: SupervisedStage, state: UntilState | None = None):
        held = state or UntilState()
        self._stage, self.held_at = stage, held.held_at
        self._recent = deque(held.recent, maxlen=WINDOW)

    def state(self) -> UntilState | None:
        """For the checkpoint; None where the stage has no condition."""
        return UntilState(tuple(self._recent), self.held_at) if self._stage.until else None

    def observe(self, done: int, sums: Mapping[str, tuple[float, float]], group: Group) -> None:
        """Take in step number `done`. sums: this rank's (sum, count) by metric."""
        if not self._stage.until or self.held_at is not None:
            return
        if done <= self._stage.begins_to_measure:
            return
        own = torch.tensor([sums[name] for name in self._stage.until], dtype=torch.float64)
        everywhere = group.sum(own.to(group.device)).tolist()
        if not all(count for _, count in everywhere):
            return  # a step that did not measure, such as one without the encoder, says nothing
        self._recent.append(tuple(total / count for total, count in everywhere))
        if len(self._recent) == WINDOW and all(
            self._stage.meets(name, value) for name, value in self.means().items()
        ):
            self.held_at = done

    def means(self) -> dict[str, float]:
        """Mean of each metric over the last steps; empty before the first."""
        columns = zip(*self._recent, strict=True)
        return {
            name: sum(values) / len(values)
            for name, values in zip(self._stage.until, columns, strict=False)
        }

    def has_ended(self, done: int) -> bool:
        """Whether the stage is over after `done` steps."""
        return done >= self.last_step

    @property
    def last_step(self) -> int:
        """Steps that the stage has, as far as is known by now."""
        steps = self._stage.total_steps
        return steps if self.held_at is None else min(steps, self.held_at + self._stage.decay_steps)

    def rate_factor(self, step: int) -> float:
        """Share of the peak rate at `step`, from 0."""
        optimizer, steps = self._stage.optimizer, self._stage.total_steps
        if not self._stage.until:
            return learning_rate_factor(optimizer, step, steps)
        warmup = round(optimizer.warmup_fraction * steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.held_at is None:
            return 1.0
        decay = optimizer.model_copy(update={"warmup_fraction": 0.0})
        return learning_rate_factor(decay, step - self.held_at, self.last_step - self.held_at)

    def sentence(self, done: int) -> str | None:
        """A line for the terminal after step number `done`; None where there is nothing to tell."""
        stage = self._stage
        found = ", ".join(f"{name} {value:.4g}" for name, value in self.means().items())
        if done == self.held_at:
            return f"{stage.stage}: {found} after {done} steps; it ends after {self.last_step}"
        if stage.until and self.held_at is None and done == stage.total_steps:
            wanted = ", ".join(f"{name} {value:g}" for name, value in stage.until.items())
            return f"warning: {stage.stage} did not reach {wanted} in {done} steps ({found})"
        return None
