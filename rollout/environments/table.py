"""The environments there are. A new one is a file beside this one, its settings in
`common/config/environment.py`, and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from common.config.environment import EnvironmentSettings
from common.episode import Interaction, Task
from common.failures import DataFailure, InputError
from rollout.environments.conversation import Conversation
from rollout.environments.custom import CustomAdapter
from rollout.environments.single_turn import SingleTurn
from rollout.environments.textworld import TextWorld, walkthroughs
from rollout.protocols import Environment


class Kind(NamedTuple):
    make: Callable[[Any], Environment]
    """From the run's settings, for one episode."""
    plays_rows: bool
    """Whether a task is a row of the data. If not, it is a seed and a number of turns."""
    walkthroughs: Callable[[Any], list[list[Interaction]]] | None = None
    """From its settings, the prompts and actions that lead through each of its games; None where
    there is nothing like it."""


ENVIRONMENTS = {
    "conversation": Kind(lambda settings: Conversation(), plays_rows=True),
    "single_turn": Kind(lambda settings: SingleTurn(), plays_rows=True),
    "custom": Kind(CustomAdapter, plays_rows=False),
    "textworld": Kind(TextWorld, plays_rows=False, walkthroughs=walkthroughs),
}
"""By `Task.environment`."""


def require_environment(settings: EnvironmentSettings) -> None:
    """Make it, reset it and take a step, as a worker will. Raises InputError saying what went
    wrong. One that plays rows is as good as the data, which is checked elsewhere."""
    kind = ENVIRONMENTS[settings.kind]
    if kind.plays_rows:
        return
    environment = kind.make(settings)
    try:
        task = Task("preflight", None, seed=0, environment=settings.kind)
        if environment.reset(task).observation is not None:
            environment.step("")
    except DataFailure as failure:
        raise InputError("environment", str(failure)) from failure
    finally:
        environment.close()
