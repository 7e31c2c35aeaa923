"""Continuous batching of conversations with a Reactive Transformer.

Each slot plays one episode. All slots that have a query take one decoding step together; the ones whose answers end in it are written
to their memories together, and go on with their next query, or with the next task, while the others keep decoding.

Invariant: an episode depends on its task and the weights, not on the slot, the batch or the order it is played in. Tokens are the same
and log-probs agree to the rounding of matrix products of different height.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.config.schema import Sampling
from common.data.tokenizer import ConversationTokenizer
from common.episode import Episode, Task, Turn
from common.failures import DataFailure
from common.models.reactive import ReactiveTransformer
from common.seeding import derive
from rollout.environments.memory import Conversation
from rollout.policies.slots import Slots, answer_room, check_interaction, memory_bytes, memory_from_bytes, memory_hash
from rollout.timing import PhaseTimer


@dataclass(slots=True)
class Playing:
    """One episode in progress."""

    task: Task
    conversation: Conversation
    prompts: list[list[int]]
    """Of all turns, opening included."""
    references: list[list[int]]
    answer: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    complete: bool = False
    """Whether the answer of the current turn is complete."""

    @property
    def prompt(self) -> list[int]:
        return self.prompts[self.conversation.turn]


@dataclass(slots=True)
class Tally:
    """What an engine did since it was made. Occupancy is row_steps / slot_steps."""

    episodes: int = 0
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


class ReactiveEngine:
    """slots: episodes in flight. The model's weights may be changed in place between calls of `run`, never during one."""

    def __init__(self, model: ReactiveTransformer, slots: int, sampling: Sampling, device: torch.device | str | None = None):
        self.model = model
        self.timer = PhaseTimer()
        self.tally = Tally()
        self.sampling = sampling
        self._slots = Slots(model, slots, sampling, torch.device(device) if device is not None else model.device, self.timer)
        self._live: list[Playing] = []

    def run(self, tasks: Sequence[Task], tokenizer: ConversationTokenizer, *, version: int = 0, worker: str = "") -> list[Episode]:
        """One episode per task, in the order of tasks. version, worker: what the episodes are to say they were played with.

        Raises DataFailure, before anything is played, naming the first task and turn that does not fit the model.
        """
        playing = [self.prepare(task, tokenizer) for task in tasks]
        ended: dict[int, Episode] = {}

        def record(done: Playing, memory: Tensor) -> None:
            ended[id(done)] = self._episode(done, memory, version, worker)
            self.tally.episodes += 1

        self._play(playing, tokenizer, record)
        return [ended[id(each)] for each in playing]

    def prepare(self, task: Task, tokenizer: ConversationTokenizer) -> Playing:
        """A task as ids, checked against the model. Raises DataFailure, naming task and turn."""
        prompts, references = [], []
        for turn, interaction in enumerate(task.row.turns):
            prompt = tokenizer.prompt(interaction.query, think=interaction.think is not None)
            reference = tokenizer.answer(interaction.answer, interaction.think)
            try:
                answer_room(self.model.config, self.sampling, prompt)
                if turn == 0 or task.teacher_forcing:
                    check_interaction(self.model.config, [*prompt, *reference])
            except DataFailure as failure:
                raise DataFailure(f"task {task.id}, turn {turn}: {failure}") from None
            prompts.append(prompt)
            references.append(reference)
        if task.initial_memory is not None:
            memory_from_bytes(task.initial_memory, self.model.config)
        conversation = Conversation(task.row)
        opening = _turn(conversation, prompts[0], references[0], [], references[0], teacher_forced=False, answer=task.row.answer)
        return Playing(task, conversation, prompts, references, turns=[opening])

    # --- scheduling ---------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _play(self, playing: Sequence[Playing], tokenizer: ConversationTokenizer, record: Callable[[Playing, Tensor], None]) -> None:
        silent = [each for each in playing if each.conversation.done]
        for start in range(0, len(silent), self._slots.count):
            batch = silent[start : start + self._slots.count]
            for each, memory in zip(batch, self._write([], batch), strict=True):
                record(each, memory)
        # Longest conversations first, so that the last ones to end are short and few slots stand empty.
        waiting = deque(sorted((each for each in playing if not each.conversation.done), key=lambda each: -len(each.prompts)))
        self._live.clear()
        self._turn_over([], waiting, tokenizer, record)
        while self._live:
            ended = self._step()
            if self._due(ended):
                self._turn_over(ended, waiting, tokenizer, record)

    def _due(self, ended: list[int]) -> bool:
        """Whether the rows whose answers are complete are to go on now.

        They wait, a step or two, until an eighth of the rows is ready: reading and writing for four costs hardly more than for one.
        """
        return len(ended) >= max(1, len(self._live) // 8)

    def _room(self, playing: Playing) -> int:
        """Tokens that the answer to the current query may have."""
        return answer_room(self.model.config, self.sampling, playing.prompt)

    def _step(self) -> list[int]:
        """One token for every live row; all rows whose answers are complete."""
        tokens = self._slots.step(len(self._live))
        ended = []
        for row, (playing, token) in enumerate(zip(self._live, tokens, strict=True)):
            if not playing.complete:
                playing.answer.append(token.id)
                playing.log_probs.append(token.log_prob)
                playing.complete = token.ends
                self.tally.tokens += 1
                self.tally.row_steps += 1
            if playing.complete:
                ended.append(row)
        self.tally.steps += 1
        self.tally.slot_steps += self._slots.count
        return ended

    def _turn_over(
        self, ended: list[int], waiting: deque[Playing], tokenizer: ConversationTokenizer, record: Callable[[Playing, Tensor], None]
    ) -> None:
        """Write what ended to memory, and give every slot its next query or the next episode.

        Openings of new episodes are written in the same batch as the answers that made room for them.
        """
        live = self._live
        staying = [row for row in ended if not live[row].conversation.done]
        leaving = [row for row in ended if live[row].conversation.done]
        free = leaving + list(range(len(live), self._slots.count))
        coming = [waiting.popleft() for _ in range(min(len(free), len(waiting)))]
        for row in ended:
            self._close_turn(live[row], tokenizer)

        memories = self._write(staying + leaving, coming)
        for row, memory in zip(leaving, memories[len(staying) : len(ended)], strict=True):
            record(live[row], memory)
        for row, playing in zip(free, coming, strict=False):
            live[row : row + 1] = [playing]
        self._ask(staying + free[: len(coming)], torch.cat((memories[: len(staying)], memories[len(ended) :])))
        for row in sorted(leaving[len(coming) :], reverse=True):
            last = live.pop()
            if row < len(live):
                live[row] = last
                self._slots.move(len(live), row)

    def _write(self, rows: list[int], coming: Sequence[Playing]) -> Tensor:
        """Memories [rows + coming, layers, slots, width] after the last turn of the episodes in `rows`, and of those that begin."""
        before = [self._slots.memory[rows]] if rows else []
        if coming:
            before.append(self._start(coming))
        writing = [self._live[row] for row in rows] + list(coming)
        if not writing:
            return self._slots.memory[:0]
        self.tally.writes += len(writing)
        self.tally.write_batches += 1
        return self._slots.remember(torch.cat(before), [playing.turns[-1].remembered_ids for playing in writing])

    def _start(self, playing: Sequence[Playing]) -> Tensor:
        """Memories [playing, layers, slots, width] that episodes begin with."""
        memories = self.model.initial_memory([each.task.seed for each in playing]).to(self._slots.memory).clone()
        for i, each in enumerate(playing):
            if each.task.initial_memory is not None:
                memories[i] = memory_from_bytes(each.task.initial_memory, self.model.config).to(memories)
        return memories

    def _ask(self, rows: list[int], memories: Tensor) -> None:
        asked = [self._live[row] for row in rows]
        forgetting = [i for i, playing in enumerate(asked) if playing.task.erase_memory]
        if forgetting:
            memories = memories.index_copy(0, torch.tensor(forgetting, device=memories.device), self._start([asked[i] for i in forgetting]))
        for playing in asked:
            playing.conversation.advance()
            playing.answer, playing.log_probs, playing.complete = [], [], False
        self._slots.start(rows, memories)
        self._slots.ask(
            rows,
            [playing.prompt for playing in asked],
            [derive(playing.task.seed, playing.conversation.turn) for playing in asked],
            [self._room(playing) for playing in asked],
            [playing.task.greedy for playing in asked],
        )

    # --- records ------------------------------------------------------------------------------------------------------------

    def _close_turn(self, playing: Playing, tokenizer: ConversationTokenizer) -> None:
        text = answer_text(tokenizer, playing.prompt, playing.answer)
        reference = playing.references[playing.conversation.turn]
        playing.turns.append(
            _turn(playing.conversation, playing.prompt, playing.answer, playing.log_probs, reference, playing.task.teacher_forcing, text)
        )
        self.tally.interactions += 1

    def _episode(self, playing: Playing, memory: Tensor, version: int, worker: str) -> Episode:
        task, final = playing.task, memory_bytes(memory)
        return Episode(
            id=f"{task.id}@{version}",
            task=task.id,
            seed=task.seed,
            turns=tuple(playing.turns),
            weights_version=version,
            step=task.step,
            strategy=task.row.strategy,
            worker=worker,
            initial_memory=task.initial_memory,
            final_memory=final if task.return_memory else None,
            memory_hash=memory_hash(final),
        )


def answer_text(tokenizer: ConversationTokenizer, prompt: Sequence[int], answer: Sequence[int]) -> str:
    """An answer as text, without the thought that stands before [A] where the prompt asked for one."""
    if prompt[-1] == tokenizer.think_id and tokenizer.answer_id in answer:
        answer = answer[list(answer).index(tokenizer.answer_id) + 1 :]
    return tokenizer.decode(answer)


def _turn(
    conversation: Conversation,
    prompt: list[int],
    answer_ids: list[int],
    log_probs: list[float],
    reference_ids: list[int],
    teacher_forced: bool,
    answer: str,
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
    )
