"""Where an MRL run stands in its curriculum: which step, how many iterations done. What a step
means for tasks is `rollout/tasks.py`'s.

A pure state machine over `MRL.curriculum`: no Ray, no torch, no clock. Invariant: the position is
one number, so a checkpoint cannot hold a contradictory one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.config.stages import MRL, CurriculumStep, Stage
from common.failures import InputError


class Curriculum:
    """Counts finished iterations and knows the step each one belongs to."""

    def __init__(self, steps: Sequence[CurriculumStep]):
        names = [step.name for step in steps]
        if not names:
            raise InputError("curriculum", "has no steps")
        for name in names:
            if names.count(name) > 1:
                raise InputError(
                    "curriculum",
                    f"has two steps named {name!r}; metrics and episodes are told apart by that "
                    "name",
                )
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

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready; holds the shape of the curriculum so that a changed one is noticed on
        resume."""
        return {"done": self.done, "steps": [[step.name, step.iterations] for step in self.steps]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume. The steps already begun must begin where they did, or the position would mean
        something else."""
        done = int(state["done"])
        then = _begun(done, [(name, iterations) for name, iterations in state["steps"]])
        now = _begun(done, [(step.name, step.iterations) for step in self.steps])
        if then != now:
            raise InputError(
                "curriculum",
                f"the checkpoint has done {done} iterations, begun as {then}; in this "
                f"configuration they are {now}",
            )
        if done > self.total:
            raise InputError(
                "curriculum", f"has {self.total} iterations, but the checkpoint has done {done}"
            )
        self.done = done


def _begun(done: int, steps: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Name and first iteration of each step begun within the first `done` iterations."""
    starts = [sum(iterations for _, iterations in steps[:i]) for i in range(len(steps))]
    return [(name, start) for (name, _), start in zip(steps, starts, strict=True) if start < done]


def stage_steps(stage: Stage) -> int:
    """Optimiser steps of a supervised stage, iterations of MRL."""
    return Curriculum(stage.curriculum).total if isinstance(stage, MRL) else stage.steps
