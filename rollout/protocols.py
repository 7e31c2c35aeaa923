"""The seams of the rollout half: what an episode is played in (`Environment`), and what plays it
(`Policy`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from common.episode import Fact, Interaction, Role, Task


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy is to answer next."""

    query: str
    reference: str = ""
    """The answer that rewards compare with; empty where there is none."""
    think: str | None = None
    """A thought before the reference; the policy thinks first wherever this is not None."""
    role: Role = "act"
    facts: tuple[Fact, ...] = ()
    """Values that a good answer contains."""


NOTHING_TOLD = Interaction("", "", role="remember")


@dataclass(frozen=True, slots=True)
class Start:
    """How an episode begins."""

    observation: Observation | None
    """None: nothing is asked, and the episode ends with its opening."""
    opening: Interaction = NOTHING_TOLD
    """What memory is written with first. `NOTHING_TOLD` leaves the template alone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an answer led to."""

    observation: Observation | None = None
    """None: the episode is over."""
    reward: float | None = None
    """What the environment pays for the answer, raw: the reward component `environment`. None:
    nothing."""
    truncated: bool = False
    """Whether the episode is cut off here, though it is not over: `observation` would have come
    next, and what it promises is not lost."""


class Environment(Protocol):
    """One episode at a time. Everything random in it derives from `Task.seed`."""

    def reset(self, task: Task) -> Start:
        """Begin the episode of a task. Raises DataFailure where it cannot."""
        ...

    def step(self, answer: str) -> Outcome:
        """Take the answer to the last observation. Raises DataFailure where the episode cannot go
        on."""
        ...

    def close(self) -> None:
        """The episode is over, or was given up."""
        ...
