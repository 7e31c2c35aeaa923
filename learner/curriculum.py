"""Where an MRL run stands in its curriculum, and when a step is over: after its iterations, or by
what is measured. What a step means for tasks is `rollout/tasks.py`'s.

A pure state machine over `MRL.curriculum`: no Ray, no torch, no clock. All ranks hold one, and show
it the same figures, so they agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from common.config.mrl import CurriculumStep
from common.failures import InputError

How = Literal["iterations", "reached", "given up"]
"""Why a step is over: its iterations are done, its rule holds, its patience is at an end."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A step that is over."""

    name: str
    iterations: int
    """Iterations that it had."""
    how: How

    def sentence(self, step: CurriculumStep, best: Mapping[str, float]) -> str | None:
        """A line for the terminal; None for a step without a rule. best: the highest value of each
        metric of the rule that was measured in the step."""
        if not step.until:
            return None
        wanted = ", ".join(f"{name} {value:g}" for name, value in step.until.items())
        found = ", ".join(f"{name} {value:.4g}" for name, value in best.items()) or "never measured"
        if self.how == "reached":
            return f"curriculum: {self.name!r} reached {wanted} after {self.iterations} iterations"
        why = "gave up on it" if self.how == "given up" else "is over"
        return (
            f"warning: curriculum: {self.name!r} {why} after {self.iterations} iterations without "
            f"{wanted} (best {found})"
        )


@dataclass(frozen=True, slots=True)
class CurriculumState:
    """Position in a curriculum."""

    ended: tuple[Ended, ...] = ()
    """Steps that are over, in order."""
    in_step: int = 0
    """Iterations done in the present step."""
    reached: int = 0
    """Last measurements in a row that were high enough."""
    stale: int = 0
    """Last measurements in a row without a new best."""
    best: Mapping[str, float] = field(default_factory=dict)
    """Highest value of each metric of the rule, in this step."""

    @property
    def done(self) -> int:
        """Iterations finished over all steps."""
        return sum(step.iterations for step in self.ended) + self.in_step

    def to_json(self) -> dict[str, Any]:
        return {
            "ended": [[step.name, step.iterations, step.how] for step in self.ended],
            "in_step": self.in_step,
            "reached": self.reached,
            "stale": self.stale,
            "best": dict(self.best),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        if "done" in record:
            return cls._counted(int(record["done"]), record["steps"])
        ended = tuple(Ended(name, int(count), how) for name, count, how in record["ended"])
        in_step, reached, stale = (int(record[key]) for key in ("in_step", "reached", "stale"))
        return cls(ended, in_step, reached, stale, record["best"])

    @classmethod
    def _counted(cls, done: int, steps: Sequence[Sequence[Any]]) -> Self:
        """From a checkpoint of when a curriculum advanced by iterations alone."""
        ended = []
        for name, count in steps:
            if done < count:
                break
            ended.append(Ended(name, count, "iterations"))
            done -= count
        return cls(tuple(ended), done)


class Curriculum:
    """Counts finished iterations, and decides by the figures that come with them."""

    def __init__(self, steps: Sequence[CurriculumStep]):
        self.steps = tuple(steps)
        self._state = CurriculumState()

    @property
    def total(self) -> int:
        """Iterations of the whole curriculum, at most."""
        return sum(step.iterations for step in self.steps)

    @property
    def done(self) -> int:
        """Iterations finished over all steps."""
        return self._state.done

    @property
    def finished(self) -> bool:
        return len(self._state.ended) == len(self.steps)

    @property
    def index(self) -> int:
        """Index of the step that the next iteration belongs to."""
        return len(self._state.ended)

    @property
    def step(self) -> CurriculumStep:
        """The step that the next iteration belongs to. IndexError at the end of the curriculum."""
        return self.steps[self.index]

    @property
    def done_in_step(self) -> int:
        """Iterations of the current step that are finished."""
        return self._state.in_step

    def advance(self, figures: Mapping[str, float] | None = None) -> str | None:
        """Count one iteration as finished. figures: what was measured with it; the rule of the step
        looks at those with all of its metrics. Returns a line for the terminal where a step with a
        rule is over."""
        step = self.step
        self._state = replace(self._state, in_step=self._state.in_step + 1)
        if step.until and figures is not None and step.until.keys() <= figures.keys():
            self._measure(step, figures)
        how = self._over(step)
        if how is None:
            return None
        held = self._state
        ended = Ended(step.name, held.in_step, how)
        self._state = CurriculumState((*held.ended, ended))
        return ended.sentence(step, held.best)

    def _measure(self, step: CurriculumStep, figures: Mapping[str, float]) -> None:
        held = self._state
        enough = all(step.meets(name, figures[name]) for name in step.until)
        better = any(figures[name] > held.best.get(name, float("-inf")) for name in step.until)
        self._state = replace(
            held,
            reached=held.reached + 1 if enough else 0,
            stale=0 if better else held.stale + 1,
            best={
                name: max(figures[name], held.best.get(name, figures[name])) for name in step.until
            },
        )

    def _over(self, step: CurriculumStep) -> How | None:
        held = self._state
        if step.until and held.reached >= step.times:
            return "reached"
        if held.in_step >= step.iterations:
            return "iterations"
        if step.patience is not None and held.stale >= step.patience:
            return "given up"
        return None

    def state(self) -> CurriculumState:
        return self._state

    def load(self, state: CurriculumState) -> None:
        """Resume. Steps that are over must stand where they did, or the position would mean
        something else; the last of them may have been given more iterations."""
        state = self._reopened(state)
        then = [(step.name, step.iterations) for step in state.ended]
        now = [
            # A rule may have ended it before its iterations were over.
            (step.name, ended.iterations if step.until else step.iterations)
            for step, ended in zip(self.steps, state.ended, strict=False)
        ]
        if then != now:
            raise InputError(
                "curriculum",
                f"the checkpoint has done {state.done} iterations, {then} of them in steps that "
                f"are over; in this configuration they are {now}",
            )
        left = self.steps[len(then)].iterations if len(then) < len(self.steps) else 0
        if state.in_step and state.in_step == left:
            ended = Ended(self.steps[len(then)].name, left, "iterations")
            state = CurriculumState((*state.ended, ended))
        elif state.in_step > left:
            raise InputError(
                "curriculum",
                f"the checkpoint has done {state.done} iterations, {state.in_step} of them in step "
                f"{len(then) + 1}, which has {left} in this configuration",
            )
        self._state = state

    def _reopened(self, state: CurriculumState) -> CurriculumState:
        """The state inside its last step that is over, where that has more iterations now and no
        later one has begun."""
        if not state.ended or state.in_step:
            return state
        last, index = state.ended[-1], len(state.ended) - 1
        step = self.steps[index] if index < len(self.steps) else None
        longer = step is not None and last.name == step.name and last.iterations < step.iterations
        if last.how != "iterations" or not longer:
            return state
        return CurriculumState(state.ended[:-1], last.iterations)
