"""An episode in progress, and the records it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from common.actions import MemoryWrite, SeparateThought
from common.config.rollout import Sampling
from common.data.special_tokens import answer_start
from common.data.tokenizer import ConversationTokenizer
from common.episode import Episode, Interaction, Memory, Task, Turn
from rollout.protocols import Environment, Observation

if TYPE_CHECKING:
    from torch import Tensor

ENVIRONMENT_REWARD = "environment"
"""Name of the reward component that holds what an environment pays."""


class TurnTokenizer(Protocol):
    """The part of a tokenizer that a turn is made with."""

    def prompt(self, query: str, think: bool = False) -> list[int]: ...

    def answer(self, text: str, think: str | None = None) -> list[int]: ...


@dataclass(slots=True)
class EpisodeState:
    """One episode in progress."""

    task: Task
    number: int
    """Number of the task among all that the engine was given."""
    environment: Environment
    version: int
    worker: str
    backend: str
    observation: Observation | None = None
    """The current or next query; None once there is nothing more to answer."""
    prompt: list[int] = field(default_factory=list)
    """The observation's query as ids."""
    reference: list[int] = field(default_factory=list)
    turn: int = 0
    """Which the observation belongs to; 0 is the opening."""
    answer: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    unfiltered: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    asked_at: float = 0.0
    """When the current query got its slot, by `time.perf_counter`."""
    complete: bool = False
    """Whether the answer of the current turn is complete."""
    next_query: list[int] = field(default_factory=list)
    """The prompt that would have come next, where the episode was cut off."""
    changes: list[Tensor] = field(default_factory=list)
    """Change of memory by each write so far, on the device: [layers, slots] each. They come to the
    host when the episode is over, so that no write waits for the device."""
    writes: list[MemoryWrite] = field(default_factory=list)
    """Memories written as text so far."""
    thoughts: list[SeparateThought] = field(default_factory=list)
    """Thoughts apart from answers so far."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """The environment's figures of the episode so far."""

    @property
    def goes_on(self) -> bool:
        """Whether it has just begun in the middle of a conversation, which memory holds so far."""
        return self.task.first_turn > 1 and len(self.turns) == 1

    @property
    def over(self) -> bool:
        """Whether nothing more is asked: the environment ended the episode, or it was cut off."""
        return self.observation is None or bool(self.next_query)


@dataclass(slots=True)
class EngineCounts:
    """Counts of an engine since it was made. Occupancy is row_steps / slot_steps."""

    episodes: int = 0
    """Played to their end."""
    failed: int = 0
    """Failed or cancelled on the way."""
    interactions: int = 0
    """Answers completed."""
    answer_seconds: float = 0.0
    """From a query's place in a slot to the end of its answer, summed over interactions."""
    tokens: int = 0
    """Tokens generated."""
    steps: int = 0
    row_steps: int = 0
    """Rows that got a token, summed over decoding steps: rows that wait for others do not count."""
    slot_steps: int = 0
    """Slots there were, summed over decoding steps."""
    writes: int = 0
    """Interactions written to memory, openings included."""
    write_batches: int = 0


def episode_of(
    playing: EpisodeState, final_memory: Memory | None = None, memory_hash: str = ""
) -> Episode:
    task = playing.task
    return Episode(
        id=f"{task.id}@{playing.version}",
        task=task.id,
        seed=task.seed,
        turns=tuple(playing.turns),
        weights_version=playing.version,
        step=task.step,
        strategy=task.strategy,
        worker=playing.worker,
        backend=playing.backend,
        initial_memory=task.initial_memory,
        final_memory=final_memory,
        memory_hash=memory_hash,
        environment=task.environment,
        next_query_ids=playing.next_query,
        figures=playing.figures,
        iteration=task.iteration,
        batch_index=task.batch_index,
        sample=task.sample,
        memory_change=[change.tolist() for change in playing.changes],
        writes=tuple(playing.writes),
        thoughts=tuple(playing.thoughts),
    )


def failed_episode(playing: EpisodeState, why: str) -> Episode:
    """The finished part of an episode that cannot go on; its last turn says why."""
    row = playing.task.row
    unbegun = Turn([], [], [], [], role="remember")
    if row is not None:
        unbegun = replace(unbegun, query=row.query, reference=row.answer)
    *turns, last = playing.turns or [unbegun]
    failed = replace(last, failure=f"turn {playing.turn}: {why}")
    return replace(episode_of(playing), turns=(*turns, failed), status="failed")


def asked_thought(think: str | None, sampling: Sampling) -> str | None:
    """The thought of the data before an answer, "" where they have none and one is asked for all
    the same; None: the policy answers at once."""
    return "" if think is None and sampling.think == "always" else think


def answer_text(
    tokenizer: ConversationTokenizer, prompt: Sequence[int], answer: Sequence[int]
) -> str:
    """An answer as text, without the thought that stands before [A] where the prompt asked for one:
    empty while [A] has not come."""
    return tokenizer.decode(answer[answer_start(prompt, answer) :])


def thought_text(
    tokenizer: ConversationTokenizer, prompt: Sequence[int], answer: Sequence[int]
) -> str:
    """The thought before an answer as text; empty where the prompt asked for none."""
    return tokenizer.decode(answer[: answer_start(prompt, answer)])


def opening_turn(tokenizer: TurnTokenizer, opening: Interaction, silent: bool) -> Turn:
    """The turn that memory is written with first. silent: nothing is asked after it."""
    prompt = tokenizer.prompt(opening.query, think=opening.think is not None)
    answer = tokenizer.answer(opening.answer, opening.think)
    return Turn(
        prompt,
        answer,
        [],
        answer,
        role=opening.role,
        facts=opening.facts,
        done=silent,
        query=opening.query,
        answer=opening.answer,
        reference=opening.answer,
        thought=opening.think or "",
    )


def answered_turn(
    playing: EpisodeState, asked: Observation, answer: str, thought: str, reward: float | None
) -> Turn:
    """The turn that answered `asked`, once the environment has taken the answer."""
    return Turn(
        query_ids=playing.prompt,
        answer_ids=playing.answer,
        log_probs=playing.log_probs,
        reference_ids=playing.reference,
        role=asked.role,
        facts=asked.facts,
        done=playing.observation is None,
        teacher_forced=playing.task.teacher_forcing,
        query=asked.query,
        answer=answer,
        reference=asked.reference,
        rewards={} if reward is None else {ENVIRONMENT_REWARD: reward},
        unfiltered_log_probs=playing.unfiltered,
        thought=thought,
    )
