"""An episode in progress, and the records it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.data.special_tokens import answer_start
from common.data.tokenizer import ConversationTokenizer
from common.episode import Episode, Task, Turn
from rollout.environments.conversation import Conversation


@dataclass(slots=True)
class EpisodeState:
    """One episode in progress."""

    task: Task
    number: int
    """Of the task among all that the engine was given."""
    conversation: Conversation
    prompts: list[list[int]]
    """Of all turns, opening included."""
    references: list[list[int]]
    version: int = 0
    worker: str = ""
    answer: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    unfiltered: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    complete: bool = False
    """Whether the answer of the current turn is complete."""

    @property
    def prompt(self) -> list[int]:
        return self.prompts[self.conversation.turn]


@dataclass(slots=True)
class EngineCounts:
    """What an engine did since it was made. Occupancy is row_steps / slot_steps."""

    episodes: int = 0
    """Played to their end."""
    failed: int = 0
    """Failed or cancelled on the way."""
    interactions: int = 0
    """Answers completed."""
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
    playing: EpisodeState, final_memory: bytes | None = None, memory_hash: str = ""
) -> Episode:
    task = playing.task
    return Episode(
        id=f"{task.id}@{playing.version}",
        task=task.id,
        seed=task.seed,
        turns=tuple(playing.turns),
        weights_version=playing.version,
        step=task.step,
        strategy=task.row.strategy,
        worker=playing.worker,
        initial_memory=task.initial_memory,
        final_memory=final_memory,
        memory_hash=memory_hash,
    )


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


def turn_of(
    conversation: Conversation,
    prompt: list[int],
    answer_ids: list[int],
    log_probs: list[float],
    reference_ids: list[int],
    teacher_forced: bool,
    answer: str,
    thought: str,
) -> Turn:
    interaction = conversation.interaction
    return Turn(
        query_ids=prompt,
        answer_ids=answer_ids,
        log_probs=log_probs,
        reference_ids=reference_ids,
        role=interaction.role,
        facts=interaction.facts,
        done=conversation.done,
        teacher_forced=teacher_forced,
        query=interaction.query,
        answer=answer,
        reference=interaction.answer,
        thought=thought,
    )
