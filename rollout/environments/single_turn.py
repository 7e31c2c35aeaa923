"""A prompt as an environment: it is asked once, and the answer ends the episode. Rewards come from
the reward service."""

from __future__ import annotations

from common.episode import Task
from rollout.protocols import Observation, Outcome, Start


class SingleTurn:
    __slots__ = ()

    def reset(self, task: Task) -> Start:
        """Nothing is told before the prompt, which is the row's first query that is not empty."""
        if task.row is None:
            raise ValueError(f"task {task.id} has no row to take a prompt from")
        asked = next(turn for turn in task.row.turns if turn.query.strip())
        return Start(Observation(asked.query, asked.answer, asked.think, facts=asked.facts))

    def step(self, answer: str) -> Outcome:
        return Outcome()

    def close(self) -> None:
        """Nothing is held."""
