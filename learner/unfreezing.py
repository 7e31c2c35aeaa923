"""Which parts of a model a stage trains by now, and at which share of the rate.

A pure state machine over the phases of a stage: no torch, no clock. Phases begin in order and never
end, so the number of phases that have begun is all there is to its state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from common.config.unfreeze import Phase
from common.failures import InputError


class Unfreezing:
    """The phases of a stage; the first one has begun. part_of: the part that a parameter of the
    stage's model belongs to, by its name in the model. beside: the part that a module beside the
    model learns with. Without phases every parameter is trained, whatever its name."""

    def __init__(
        self,
        phases: Sequence[Phase],
        part_of: Callable[[str], str],
        beside: Mapping[str, str] = MappingProxyType({}),
    ):
        self.phases, self._part_of, self._beside = tuple(phases), part_of, beside
        self.begun = 0
        """Phases that have begun."""
        self.advance(0)

    def advance(self, done: int, reward: float | None = None) -> tuple[Phase, ...]:
        """Begin what is due after `done` steps of the stage, and return it. reward: the mean of the
        last iteration over all ranks; None where nothing was scored."""
        before = self.begun
        for phase in self.phases[before:]:
            in_time = phase.after is not None and done >= phase.after
            earned = phase.reward is not None and reward is not None and reward >= phase.reward
            # The phases behind it wait, too: what is first in the list learns first.
            if not (in_time or earned):
                break
            self.begun += 1
        return self.phases[before : self.begun]

    def load(self, begun: int, done: int) -> None:
        """Resume after `done` steps, with `begun` phases begun. Raises as `require_begun`."""
        require_begun(self.phases, begun)
        self.begun = begun if self.phases else 0
        self.advance(done)

    def part(self, name: str) -> str:
        """The part of a parameter: one of the model's or, beside the model, its module. name: as
        `Trainer` has it, such as "model.encoder.…"."""
        module, _, inner = name.partition(".")
        return self._part_of(inner) if module == "model" else module

    def scale(self, name: str) -> float:
        """Share of its peak rate that a parameter learns at, 0 where it is frozen. name: as in
        `part`."""
        if not self.phases:
            return 1.0
        part = self.part(name)
        return self.scales().get(self._beside.get(part, part), 0.0)

    def scales(self) -> dict[str, float]:
        """The same by part, of all parts that the phases name; empty without phases."""
        return {
            part: phase.learning_rate if number < self.begun else 0.0
            for number, phase in enumerate(self.phases)
            for part in phase.train
        }


def require_begun(phases: Sequence[Phase], begun: int) -> None:
    """Raises InputError where phases of a stage have begun that its settings do not have any more.
    Without any phases all parts learn, which takes none of them back."""
    if begun > len(phases) > 0:
        raise InputError(
            "unfreeze",
            f"has {len(phases)} phases, and {begun} have begun; put back those that are missing",
        )


def told(stage: str, done: int, phases: Sequence[Phase]) -> str:
    """A line for the terminal: parts that begin to learn after `done` steps."""
    parts = ", ".join(part for phase in phases for part in phase.train)
    return f"{stage}: after {done} steps {parts} begin to learn"
