"""The only currency between data, rollout, rewards and learner: `Row` in, `Episode` out.

A `Row` is a conversation as text, straight from a data set. A `Task` is a row dealt to a rollout
worker with a seed. An `Episode` is what came back. Records are plain and immutable;
`dataclasses.replace` makes a changed copy. Token ids are plain lists of int: a record pickles
small, compares by value, and goes to Arrow unchanged (`common/episode_arrow.py`).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from common.actions import Action, MemoryWrite, SeparateThought
from common.data.special_tokens import spoken_ids
from common.record import Record, values_of
from common.seeding import derive

Role = Literal["remember", "distract", "recall", "act"]
Strategy = Literal["single", "cumulative", "long_term"]
Status = Literal["generated", "scored", "unscored", "failed"]
"""unscored: played, but no turn has a reward. failed: not played to its end."""


@dataclass(frozen=True, slots=True)
class Fact(Record):
    """A value that a good answer must contain, and where the conversation last said it."""

    value: str
    said_in: int
    """Index of the interaction that last said it: 0 is the opening one, follow-up i is i + 1."""
    outdated: tuple[str, ...] = ()
    """Earlier values that it replaced in this conversation, oldest first; empty for a fact that
    never changed."""


@dataclass(frozen=True, slots=True)
class Interaction(Record):
    """One query and the answer that the data set holds for it."""

    query: str
    answer: str
    think: str | None = None
    role: Role = "act"
    facts: tuple[Fact, ...] = ()


@dataclass(frozen=True, slots=True)
class Row(Record):
    """A conversation: the opening interaction goes to memory as it stands, the follow-ups are
    answered by the policy."""

    query: str
    answer: str
    interactions: tuple[Interaction, ...]
    think: str | None = None
    strategy: Strategy = "cumulative"
    source: str = ""
    """Where it comes from: a file, or a task of a data set. Evaluations draw evenly over sources,
    and a curriculum step may take some of them."""
    strategy_open: bool = False
    """Whether the data name no strategy: a curriculum step then gives it its own."""

    @property
    def opening(self) -> Interaction:
        return Interaction(self.query, self.answer, self.think, role="remember")

    @property
    def turns(self) -> tuple[Interaction, ...]:
        """Opening and follow-ups; the index in here is what `Fact.said_in` counts."""
        return (self.opening, *self.interactions)


@dataclass(frozen=True, slots=True)
class Memory(Record):
    """Memory of a policy at one moment, in the policy's own format. Only a policy of the same kind
    reads it."""

    kind: str
    data: bytes

    def to_json(self) -> dict[str, str]:
        return {"kind": self.kind, "data": base64.b64encode(self.data).decode()}

    @classmethod
    def from_json(cls, record: Mapping[str, str]) -> Self:
        return cls(record["kind"], base64.b64decode(record["data"]))


@dataclass(frozen=True, slots=True)
class Task(Record):
    """An episode to be played by a rollout worker. Everything random about it derives from
    `seed`."""

    id: str
    row: Row | None
    """The conversation to play; None where the environment makes up its own."""
    seed: int
    """Keys the sampling stream, the initial memory and what the environment draws."""
    step: str = ""
    """Name of the curriculum step that dealt it."""
    teacher_forcing: bool = False
    """Whether memory is written with the data set's answer in place of the generated one."""
    greedy: bool = False
    erase_memory: bool = False
    """A control: memory is put back to where the episode started before every query, so nothing can
    be remembered."""
    initial_memory: Memory | None = None
    """Memory to start from, kept from an earlier episode; None: the policy's initial memory for
    `seed`."""
    return_memory: bool = False
    """Whether the episode brings its last memory back, for another to start from."""
    environment: str = "conversation"
    """Which environment plays it: a kind of rollout/environments/table.py."""
    max_turns: int | None = None
    """The turn after whose answer the episode is cut off; None: it ends where the environment ends
    it."""
    iteration: int = 0
    """Iteration of its stage; 0 outside training."""
    batch_index: int = 0
    """Which task of its batch it is. An episode may go on from the memory that the same index left
    an iteration before."""
    sample: int = 0
    """Which of the episodes that start alike it is: those of a group differ in their draws of
    answers alone."""
    first_turn: int = 1
    """The turn that is asked first. From 2 on, `initial_memory` was written with all before it, and
    turn 0 of the episode is the one before: a long conversation is played in parts."""

    @property
    def strategy(self) -> Strategy:
        return "cumulative" if self.row is None else self.row.strategy

    def answer_seed(self, turn: int) -> int:
        """Seed of the draws of an answer: of turn `turn`, 1 for the first answered one."""
        return derive(self.seed, *self._own, turn)

    def seed_of(self, purpose: Literal["write", "thought"], turn: int) -> int:
        """The same of the memory that is written after turn `turn`, where it is text, or of the
        thought before its answer, where it is apart."""
        return derive(self.seed, *self._own, purpose, turn)

    @property
    def _own(self) -> tuple[str | int, ...]:
        """Parts of a seed that tell its draws from those of the episodes that start alike."""
        return ("sample", self.sample) if self.sample else ()


@dataclass(frozen=True, slots=True)
class RewardTerm(Record):
    """How a component's raw value entered the total of a turn: as weight · (value held to [low,
    high] - mean) / std."""

    weight: float
    version: str
    """Changes with whatever computes the value: settings, a function's file, a model's weights."""
    low: float = -math.inf
    high: float = math.inf
    mean: float = 0.0
    std: float = 1.0

    def values(self, raw: np.ndarray) -> np.ndarray:
        """Raw values, clipped and normalised, before they are weighted."""
        return (np.clip(raw, self.low, self.high) - self.mean) / self.std


class Verdict(NamedTuple):
    """Result of scoring one turn: values for the fields of `Turn` that have these names."""

    rewards: Mapping[str, float]
    terms: Mapping[str, RewardTerm]
    reward: float | None
    reward_std: float = 0.0
    failure: str | None = None

    @property
    def unrewarded(self) -> bool:
        """Whether no component with a weight applies to the turn. Its reward is 0 by rule, and it
        has not failed: a reward that comes with a later turn reaches it as credit."""
        return self.reward == 0 and not any(term.weight for term in self.terms.values())


@dataclass(frozen=True, slots=True)
class Turn(Record):
    """One interaction as it happened. Index 0 of an episode is the opening one: nothing generated,
    nothing rewarded."""

    query_ids: Sequence[int]
    """Prompt with its template: [BOS][Q] query [A], or [T] in place of [A] where a thought comes
    first."""
    answer_ids: Sequence[int]
    """Generated tokens, with [EOS] where the policy ended by itself. The memory is written with
    query and answer, without the thought before it (`remembered_ids`)."""
    log_probs: Sequence[float]
    """Log-probability of each answer token under the distribution it was sampled from; empty for
    the opening turn."""
    reference_ids: Sequence[int]
    """The data set's answer with [EOS], after its thought and [A] where the prompt asks for one."""
    role: Role = "act"
    facts: tuple[Fact, ...] = ()
    done: bool = False
    """Whether the conversation was over with it; False where it was cut off."""
    teacher_forced: bool = False
    """True: the memory was written with query_ids + reference_ids."""
    query: str = ""
    answer: str = ""
    reference: str = ""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Raw value of each component. Before it is scored: what the environment paid."""
    terms: Mapping[str, RewardTerm] = field(default_factory=dict)
    """How each of them entered the total."""
    reward: float | None = None
    """Weighted mean of the terms, scaled; 0 where none with a weight applies; None where the turn
    was not scored."""
    reward_std: float = 0.0
    """Standard deviation of the score by reward models that give a distribution, in levels; of
    several, the largest."""
    failure: str | None = None
    """Why it was not scored, or not played to its end."""
    unfiltered_log_probs: Sequence[float] = field(default_factory=list)
    """As `log_probs`, under the temperature alone; empty where no top-k, top-p or min-p was on and
    the two agree."""
    thought: str = ""
    """Text before [A] in `answer_ids` where the prompt ends with [T]. It is no part of `answer`,
    and rewards do not look at it but for the component `thought`."""

    @property
    def remembered_ids(self) -> list[int]:
        """The ids that memory was written with after this turn: thoughts are no part of them."""
        ids = self.reference_ids if self.teacher_forced else self.answer_ids
        return spoken_ids(self.query_ids, ids)

    @property
    def exchange(self) -> tuple[str, str]:
        """Query and answer that memory was written with after this turn, as text."""
        return self.query, self.reference if self.teacher_forced else self.answer


@dataclass(frozen=True, slots=True)
class TurnInContext(Turn):
    """A turn with what was said before it, as reward functions and endpoints get it."""

    history: tuple[tuple[str, str], ...] = ()
    """(query, answer) of each turn before, in order, the opening first: the answers that memory was
    written with."""

    @classmethod
    def of(cls, turn: Turn, history: tuple[tuple[str, str], ...]) -> TurnInContext:
        values: tuple[Any, ...] = (*values_of(Turn)(turn), history)
        return cls(*values)


@dataclass(frozen=True, slots=True)
class Episode(Record):
    """A whole conversation with the policy of one weights version.

    Its id names it and nothing else: no number is read from it.
    """

    id: str
    task: str
    seed: int
    turns: tuple[Turn, ...]
    weights_version: int
    """Steps of the whole run that had made the weights: those of the checkpoint with this step."""
    step: str = ""
    strategy: Strategy = "cumulative"
    status: Status = "generated"
    worker: str = ""
    initial_memory: Memory | None = None
    """Where the episode did not start from the memory of its seed (`Task.initial_memory`)."""
    final_memory: Memory | None = None
    """The same after the last write, where the task asked for it."""
    memory_hash: str = ""
    """Hash of the memory after the last write, for replay."""
    environment: str = "conversation"
    """Kind of the environment that it was played in."""
    next_query_ids: Sequence[int] = field(default_factory=list)
    """The prompt that would have come next, where the episode was cut off; empty where it ended."""
    iteration: int = 0
    """Iteration of its stage (`Task.iteration`)."""
    batch_index: int = 0
    """Which task of its batch it was."""
    sample: int = 0
    """Which of the episodes that started alike it was (`Task.sample`)."""
    backend: str = ""
    """How the policy computed it (`rollout.backend`)."""
    memory_change: Sequence[Sequence[Sequence[float]]] = field(default_factory=list)
    """[writes][layers][slots]: norm of the change of each slot by the write after a turn, over its
    norm before. Of more than 64 slots, means of 64 groups of neighbours. A failed episode may have
    fewer writes than turns; empty where memory has no slots."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Figures of its environment at its end, such as the progress of a game."""
    writes: tuple[MemoryWrite, ...] = ()
    """Memories that the policy wrote as text, in order. Nothing is written that nobody reads:
    the last turn is followed by one only where a query would have come, or where the task asked
    for the memory."""
    thoughts: tuple[SeparateThought, ...] = ()
    """Thoughts of the policy before its answers, where they are no part of them."""

    @property
    def actions(self) -> tuple[Action, ...]:
        """All that the policy generated, in order: the memory after the opening, the first thought,
        its answer, the memory after it, …; the answers alone where it has no others."""
        rewarded = [turn.reward is not None for turn in self.turns]
        writes = {write.turn: write for write in self.writes}
        thoughts = {thought.turn: thought for thought in self.thoughts}
        found = []
        for index, turn in enumerate(self.turns):
            if (thought := thoughts.get(index)) is not None:
                earns = 0.0 if any(rewarded[index:]) else None
                found.append(Action(index, "thought", thought.ids, thought.log_probs, earns))
            if index:
                given = (turn.answer_ids, turn.log_probs, turn.reward, turn.reward_std)
                found.append(Action(index, "answer", *given))
            if (write := writes.get(index)) is not None:
                earns = 0.0 if any(rewarded[index + 1 :]) else None
                found.append(Action(index, "memory", write.ids, write.log_probs, earns))
        return tuple(found)

    def thought_before(self, turn: int) -> list[int]:
        """All that stands between the prompt of a turn and its answer; empty without a thought."""
        return next((each.whole for each in self.thoughts if each.turn == turn), [])

    @property
    def answered(self) -> tuple[Turn, ...]:
        """The turns that the policy answered: all but the opening."""
        return self.turns[1:]

    @property
    def truncated(self) -> bool:
        """Whether it was cut off, so that its last turn is not the end of what could be earned."""
        return bool(self.next_query_ids)

    def judged(self, verdicts: Sequence[Verdict]) -> Self:
        """With a verdict for each answered turn, in order. "unscored" where no turn has a reward.
        One that failed stays so."""
        if self.status == "failed":
            return self
        answered = tuple(
            replace(turn, **verdict._asdict())
            for turn, verdict in zip(self.answered, verdicts, strict=True)
        )
        lost = bool(verdicts) and all(verdict.reward is None for verdict in verdicts)
        return replace(
            self, turns=(*self.turns[:1], *answered), status="unscored" if lost else "scored"
        )
