"""Playing tasks to their end, with whatever policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from common.episode import Episode, Task
from rollout.protocols import Policy


def play(
    policy: Policy, tasks: Sequence[Task], on_progress: Callable[[int], None] = lambda done: None
) -> list[Episode]:
    """One episode per task, in the order of tasks, whose ids must differ. The policy must have
    nothing in flight, and has nothing in flight afterwards, whatever is raised.

    on_progress: called with the number of episodes that are over, now and then.
    """
    if policy.in_flight:
        raise RuntimeError(f"{policy.in_flight} episodes are in flight")
    if len({task.id for task in tasks}) < len(tasks):
        raise ValueError("two tasks have the same id")
    came: dict[str, Episode] = {}
    try:
        policy.add(tasks)
        while policy.in_flight:
            came.update((episode.task, episode) for episode in policy.advance())
            on_progress(len(came))
    finally:
        if policy.in_flight:
            for task in tasks:
                policy.cancel(task.id, "another episode could not be played")
            policy.advance()
    return [came[task.id] for task in tasks]
