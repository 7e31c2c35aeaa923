"""A row of a data set as an environment: it asks the row's queries one after another, whatever the
policy answers. Rewards come from the reward service, which sees the episode whole."""

from __future__ import annotations

from common.episode import Interaction, Task
from rollout.protocols import Observation, Outcome, Start


class Conversation:
    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left: list[Interaction] = []
        """Interactions to come, the next one last."""

    def reset(self, task: Task) -> Start:
        if task.row is None:
            raise ValueError(f"task {task.id} has no row to talk about")
        before = task.first_turn - 1
        self._left = list(reversed(task.row.interactions[before:]))
        said = task.row.interactions[before - 1] if before else task.row.opening
        return Start(self._next(), said)

    def step(self, answer: str) -> Outcome:
        return Outcome(self._next())

    def close(self) -> None:
        self._left.clear()

    def _next(self) -> Observation | None:
        if not self._left:
            return None
        turn = self._left.pop()
        return Observation(turn.query, turn.answer, turn.think, turn.role, turn.facts)
