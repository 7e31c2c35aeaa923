"""The seams of the rollout half: what an episode is played in (`Environment`), and what plays it
(`Policy`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from common.episode import Episode, Fact, Interaction, Role, Task
from common.telemetry.timing import PhaseTimer
from common.weights import PackedWeights


@dataclass(frozen=True, slots=True)
class Observation:
    """The query that the policy answers next."""

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
    """Interaction that memory is written with first. `NOTHING_TOLD` leaves the template alone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of an answer."""

    observation: Observation | None = None
    """None: the episode is over."""
    reward: float | None = None
    """Raw reward that the environment gives for the answer: the reward component `environment`.
    None: no reward."""
    truncated: bool = False
    """Whether the episode is cut off here, though it is not over: `observation` would have come
    next, and what it promises is not lost."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Figures of the episode so far, by name, such as the progress of a game: measured, not
    paid."""


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


@runtime_checkable
class WorksAhead(Protocol):
    """An environment that works in another process. It is told an answer as soon as that is
    complete, and works while the policy goes on with other episodes; `step` follows."""

    def begin(self, answer: str) -> None:
        """Begin what `step` with this answer waits for. Raises nothing."""
        ...


class Policy(Protocol):
    """Plays many episodes at once with the weights it holds, and remembers in a way of its own.

    Invariant: an episode depends on its task and the weights, not on what else is played.
    """

    version: int
    """Version of the weights it holds; -1 before it was given any."""

    @property
    def timer(self) -> PhaseTimer:
        """Where its time goes; `current` is what it is doing."""
        ...

    def load(self, weights: PackedWeights) -> None:
        """Take other weights, while nothing is in flight. Raises WeightsCorrupt or WeightsMismatch,
        and keeps what it had."""
        ...

    def not_finite(self) -> str | None:
        """The name of a tensor of the weights that holds a value which is not finite."""
        ...

    def add(self, tasks: Sequence[Task]) -> None:
        """Queue tasks, whose ids differ from those in flight."""
        ...

    @property
    def in_flight(self) -> int:
        """Episodes that were added and have not come back."""
        ...

    def advance(self) -> list[Episode]:
        """Go on by a step; the episodes that ended in it, in any order. One that cannot go on has
        status "failed", and its last turn says why."""
        ...

    def cancel(self, task: str, reason: str) -> bool:
        """Take the episode of a task out; it comes back as failed for `reason`. False where it is
        not in flight."""
        ...

    def counts(self) -> dict[str, float]:
        """Counts since it was made: episodes, tokens, row_steps and slot_steps at least."""
        ...

    def session(self, seed: int) -> Session:
        """A conversation with a person, with the weights it holds."""
        ...


@dataclass(frozen=True, slots=True)
class Event:
    """thought: `text` is the whole thought before the answer, which begins then. token: `text` is
    what the answer grew by, perhaps nothing yet. updating: the answer is
    complete, `text` is all of it, and the memory is being updated. updated: the memory holds the
    interaction; the next query may come."""

    kind: Literal["thought", "token", "updating", "updated"]
    text: str = ""


class Kept(Protocol):
    """Memory of a session at one moment. Only sessions of the same kind read it."""

    @property
    def turn(self) -> int:
        """Interactions it was written with."""
        ...


class Session(Protocol):
    """One conversation, token by token."""

    turn: int
    """Interactions that the memory was written with."""

    def respond(self, query: str) -> Iterator[Event]:
        """The answer as it comes, its thought before it where `sampling.think` asks for one, then
        the two events of the memory update. Raises InputError where
        the query is too long."""
        ...

    def remember(self, query: str, answer: str) -> None:
        """Write an interaction that nobody generated."""
        ...

    def reset(self) -> None:
        """Back to the memory that the session began with."""
        ...

    def describe(self) -> str:
        """The memory in a line or two."""
        ...

    def kept(self) -> Kept:
        """A copy of the session's memory as it is now."""
        ...

    def restore(self, kept: Any) -> None:
        """Go on from what was kept. Raises InputError where it is another policy's."""
        ...

    def save(self, path: str | Path) -> None:
        """Raises InputError where the file cannot be written."""
        ...

    def load(self, path: str | Path) -> None:
        """Go on from what `save` wrote. Raises InputError where the file is something else."""
        ...

    def saved_in(self, folder: Path) -> dict[str, int]:
        """Files of `folder` that `load` takes, by name, and how many interactions each was written
        with."""
        ...
