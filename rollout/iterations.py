"""State that passes from one iteration to the next, between dealing it and training on it.

Pure state: no Ray, no clock, no disk. The conductor holds one, and so does the learner's source of
episodes in tests.

Invariant: the tasks of an iteration and how its episodes are scored follow from the iterations
trained before it, so whoever goes on from a `RolloutState` deals and scores as if never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from common.episode import Episode, Memory, Task
from common.failures import InputError
from rollout.tasks import COMPARED, Dealer, Memories, Plan

AfterScoring = Callable[[Mapping[str, Any], Sequence[Episode]], Mapping[str, Any]]
"""The scorer's state after an iteration: from the state it was scored with, and its episodes."""


@dataclass(frozen=True, slots=True)
class RolloutState:
    """State of the rollout half before it deals `iteration`."""

    iteration: int = 0
    scorer: Mapping[str, Any] = field(default_factory=dict)
    """The scorer's own state; JSON-ready."""
    memories: Memories | None = None
    """Memories that episodes of the iteration before left for this one; None: no memories."""

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"iteration": self.iteration, "scorer": dict(self.scorer)}
        if self.memories is None:
            return record | {"memories": None}
        held = {str(index): memory.to_json() for index, memory in self.memories.by_index.items()}
        return record | {"memories": {"step": self.memories.step, "by_index": held}}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        iteration, held = int(record["iteration"]), record["memories"]
        if held is None:
            return cls(iteration, record["scorer"])
        by_index = {
            int(index): Memory.from_json(memory) for index, memory in held["by_index"].items()
        }
        return cls(iteration, record["scorer"], Memories(iteration - 1, held["step"], by_index))


class Iterations:
    """after: called with the episodes of each iteration that was collected."""

    def __init__(self, dealer: Dealer, after: AfterScoring):
        self._dealer, self._after = dealer, after
        self._states = {0: RolloutState()}
        """By the iteration that goes on from it: the next one, and those that may come after it."""
        self.next = 0
        """The first iteration that was not trained."""

    def state(self, iteration: int) -> RolloutState:
        """The state that `iteration` goes on from."""
        return self._states.get(iteration, RolloutState(iteration))

    def require_untrained(self, iteration: int) -> None:
        """Raises InputError for an iteration that was trained on: it is not dealt again."""
        if iteration < self.next:
            raise InputError(
                "next_batch",
                f"iteration {iteration} was trained, next is {self.next}; to go back, load a "
                "checkpoint's state",
            )

    def deal(self, plan: Plan, iteration: int) -> list[Task]:
        return self._dealer.deal(plan, iteration, self.state(iteration).memories)

    def collected(self, plan: Plan, iteration: int, episodes: Sequence[Episode]) -> list[Episode]:
        """Take in the scored episodes of an iteration. Their last memories stay here, for the next
        iteration, since the learner recomputes memories; it gets a few to compare with."""
        leaves = self._dealer.leaves(plan, iteration)
        left = {
            episode.batch_index: episode.final_memory
            for episode in episodes
            if episode.final_memory is not None and leaves[episode.batch_index]
        }
        memories = Memories(iteration, plan.step, left) if left else None
        scorer = self._after(self.state(iteration).scorer, episodes)
        self._states[iteration + 1] = RolloutState(iteration + 1, scorer, memories)
        return [
            episode if episode.batch_index < COMPARED else replace(episode, final_memory=None)
            for episode in episodes
        ]

    def trained(self, iteration: int) -> None:
        """Count the collected iteration as trained."""
        self.next = iteration + 1
        self._states = {at: state for at, state in self._states.items() if at > iteration}

    def discard(self, iteration: int) -> None:
        """Forget what a collected iteration left, unless it was trained on."""
        if iteration >= self.next:
            self._states.pop(iteration + 1, None)

    def load(self, state: RolloutState) -> None:
        """Go on from a state; everything later is forgotten."""
        self.next = state.iteration
        self._states = {state.iteration: state}
