"""Settings of the environments that MRL plays in. `rollout/environments/table.py` has what plays
each kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from common.config.locations import FunctionSource
from common.config.section import Section
from common.config.textworld import TextWorldEnvironment


class ConversationEnvironment(Section):
    """The conversations of the run's data: their queries are asked in order, whatever the policy
    answers."""

    kind: Literal["conversation"] = "conversation"
    """Which kind of environment this is."""


class CustomEnvironment(Section):
    """An environment of yours: a `gymnasium.Env` whose observations and actions are texts, or a
    class with the methods of `Environment` (rollout/protocols.py).

    One is made and reset for every episode, in the rollout workers. `max_steps` of a curriculum
    step says after how many answers an episode is cut off.
    """

    kind: Literal["custom"]
    """Which kind of environment this is."""
    path: FunctionSource
    """FILE.py:CLASS or package.module:CLASS, on every node that runs rollout workers."""
    arguments: dict[str, Any] = Field({})
    """Keyword arguments that the class is called with."""
    deadline: float = Field(10, gt=0)
    """Seconds for one call of it. An episode whose environment takes longer fails."""


class SingleTurnEnvironment(Section):
    """One prompt and one answer: of each row of the data its first query, with nothing told
    before."""

    kind: Literal["single_turn"]
    """Which kind of environment this is."""


CONVERSATION = ConversationEnvironment()
"""The default environment."""

EnvironmentSettings = Annotated[
    ConversationEnvironment | SingleTurnEnvironment | CustomEnvironment | TextWorldEnvironment,
    Field(discriminator="kind"),
]
