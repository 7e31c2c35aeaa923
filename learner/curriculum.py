"""Where an MRL run stands in its curriculum: which step, how many iterations done. What a step
means for tasks is `rollout/tasks.py`'s.

A pure state machine over `MRL.curriculum`: no Ray, no torch, no clock. Invariant: the position is
one number, so a checkpoint cannot hold a contradictory one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from common.config.mrl import CurriculumStep
from common.failures import InputError


@dataclass(frozen=True, slots=True)
class CurriculumState:
    """Position in a curriculum, and its shape, so that a changed one is noticed on resume."""

    done: int
    """Iterations finished over all steps."""
    steps: tuple[tuple[str, int], ...]
    """Name and iterations of each step."""

    def begun(self) -> list[tuple[str, int]]:
        """Name and first iteration of each step that has begun."""
        starts = [sum(count for _, count in self.steps[:i]) for i in range(len(self.steps))]
        named = zip(self.steps, starts, strict=True)
        return [(name, start) for (name, _), start in named if start < self.done]

    def to_json(self) -> dict[str, Any]:
        return {"done": self.done, "steps": [list(step) for step in self.steps]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        steps = tuple((name, int(iterations)) for name, iterations in record["steps"])
        return cls(int(record["done"]), steps)


class Curriculum:
    """Counts finished iterations and knows the step each one belongs to."""

    def __init__(self, steps: Sequence[CurriculumStep]):
        self.steps = tuple(steps)
        self.done = 0
        """Iterations finished over all steps."""

    @property
    def total(self) -> int:
        """Iterations of the whole curriculum."""
        return sum(step.iterations for step in self.steps)

    @property
    def finished(self) -> bool:
        return self.done >= self.total

    @property
    def index(self) -> int:
        """Index of the step that the next iteration belongs to."""
        return self.index_of(self.done)

    @property
    def step(self) -> CurriculumStep:
        """The step that the next iteration belongs to."""
        return self.steps[self.index]

    @property
    def done_in_step(self) -> int:
        """Iterations of the current step that are finished."""
        return self.done - sum(step.iterations for step in self.steps[: self.index])

    def index_of(self, iteration: int) -> int:
        """Index of the step that an iteration (0 is the first of the run) belongs to. IndexError
        outside the curriculum."""
        if not 0 <= iteration < self.total:
            raise IndexError(f"iteration {iteration} of a curriculum of {self.total}")
        for index, step in enumerate(self.steps):
            if iteration < step.iterations:
                return index
            iteration -= step.iterations
        raise AssertionError("unreachable: total is the sum of iterations")

    def advance(self) -> bool:
        """Count one iteration as finished; whether the next one begins a new step (also False at
        the end)."""
        before = self.index
        self.done += 1
        return not self.finished and self.index != before

    def state(self) -> CurriculumState:
        return CurriculumState(
            self.done, tuple((step.name, step.iterations) for step in self.steps)
        )

    def load(self, state: CurriculumState) -> None:
        """Resume. The steps already begun must begin where they did, or the position would mean
        something else."""
        then, now = state.begun(), replace(self.state(), done=state.done).begun()
        if then != now:
            raise InputError(
                "curriculum",
                f"the checkpoint has done {state.done} iterations, begun as {then}; in this "
                f"configuration they are {now}",
            )
        if state.done > self.total:
            raise InputError(
                "curriculum",
                f"has {self.total} iterations, but the checkpoint has done {state.done}",
            )
        self.done = state.done
