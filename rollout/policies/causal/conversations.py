"""Conversations with a causal language model, turn by turn: what is the same whoever generates.

Each slot plays one episode: the prompt of an observation after what is remembered, an answer, the
environment, the interaction remembered. A policy with a text memory generates that, too: then the
slot writes, as it answers, before the next observation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from common.actions import MemoryWrite, SeparateThought
from common.config.environment import CONVERSATION, EnvironmentSettings
from common.config.rollout import Sampling
from common.data.causal_tokenizer import CausalTokenizer
from common.data.dialogue import Held, memory_hash
from common.episode import Episode, Interaction, Task, Turn
from common.failures import DataFailure
from common.telemetry.timing import PhaseTimer
from rollout.environments.table import ENVIRONMENTS
from rollout.policies.episode_state import (
    EngineCounts,
    EpisodeState,
    answered_turn,
    asked_thought,
    episode_of,
    failed_episode,
    opening_turn,
)
from rollout.policies.stopping import StopStrings
from rollout.protocols import WorksAhead


@dataclass(slots=True)
class CausalState(EpisodeState):
    """One episode in progress."""

    held: Held = ()
    """Content of the memory now."""
    first: Held = ()
    """Content of the memory that the episode began with."""
    context: Sequence[int] = ()
    """Ids before what is generated now."""
    room: int = 0
    """The most tokens that it may have."""
    seed: int = 0
    """Seed of the draws."""
    prompts: int = 0
    """Prompts so far, of queries and of memories."""
    phase: Literal["thought", "answer", "memory"] = "answer"
    """The kind of tokens that are generated now."""
    thought: SeparateThought | None = None
    """That of the turn that is answered now."""
    cut_off: bool = False
    """Whether the episode is cut off before the next observation."""

    @property
    def last(self) -> int:
        """The token that the next step reads."""
        return self.answer[-1] if self.answer else self.context[-1]


class Conversations(ABC):
    """Engines are subclasses: they answer the prompts of what is live. slots: episodes in
    flight."""

    backend: str
    """Name of what computes, as episodes hold it."""

    def __init__(
        self,
        tokenizer: CausalTokenizer,
        slots: int,
        sampling: Sampling,
        environment: EnvironmentSettings = CONVERSATION,
    ):
        self.tokenizer, self.sampling, self.timer = tokenizer, sampling, PhaseTimer()
        self.tally = EngineCounts()
        self._slots, self._environment = slots, environment
        self._stops = StopStrings(sampling.stop, tokenizer)
        self._live: list[CausalState] = []
        self._waiting: list[CausalState] = []
        self._ended: list[Episode] = []
        self._given = 0

    @property
    def in_flight(self) -> int:
        return len(self._live) + len(self._waiting) + len(self._ended)

    def add(self, tasks: Sequence[Task], version: int = 0, worker: str = "") -> None:
        for task in tasks:
            environment = ENVIRONMENTS[task.environment].make(self._environment)
            self._waiting.append(
                CausalState(task, self._given, environment, version, worker, self.backend)
            )
            self._given += 1

    def cancel(self, task: str, reason: str) -> bool:
        for playing in [each for each in self._waiting if each.task.id == task]:
            self._waiting.remove(playing)
            self._fail(playing, reason)
            return True
        for playing in [each for each in self._live if each.task.id == task]:
            self._fail(playing, reason)
            self._drop(playing)
            return True
        return False

    def advance(self) -> list[Episode]:
        """One step of all that is in flight; the episodes that ended in it."""
        self._advance()
        came, self._ended = self._ended, []
        return came

    @abstractmethod
    def _advance(self) -> None:
        """One step of what is live, then the next prompts for what came to the end of a turn."""

    @abstractmethod
    def _drop(self, playing: CausalState) -> None:
        """Take one out of what is live."""

    def _took(self, playing: CausalState, token: int, log_prob: float) -> None:
        """Add a token to what is generated; `complete` where it ends it. Stop strings are for
        answers: a memory may hold them."""
        playing.answer.append(token)
        playing.log_probs.append(log_prob)
        ends = token == self.tokenizer.eos_id or len(playing.answer) >= playing.room
        if playing.phase == "thought":
            ends = ends or self.tokenizer.ends_thought(playing.answer)
        stops = bool(self._stops) and playing.phase == "answer"
        playing.complete = ends or (stops and self._stops.reached(playing.answer))
        answered = playing.complete and playing.phase == "answer"
        if answered and isinstance(playing.environment, WorksAhead):
            playing.environment.begin(self._text(playing))
        self.tally.tokens += 1
        self.tally.row_steps += 1

    # --- turns ------------------------------------------------------------------------------------

    def _asking(self, complete: Sequence[CausalState], free: int) -> list[CausalState]:
        """Close the answers and memories that are complete, and begin episodes that wait in the
        slots that are free then. free: without those of `complete`. Those that have a prompt to
        generate after now."""
        asking = [playing for playing in complete if self._goes_on(playing, self._close)]
        free += len(complete)
        while self._waiting and len(asking) < free:
            playing = self._waiting.pop(0)
            if self._goes_on(playing, self._open):
                asking.append(playing)
        return asking

    def _goes_on(self, playing: CausalState, step: Callable[[CausalState], None]) -> bool:
        """Take a step of the episode; whether it has a prompt to generate after it. One that ended
        or failed is put among those that come back."""
        try:
            step(playing)
        except DataFailure as failure:
            self._fail(playing, str(failure))
            return False
        if playing.phase == "memory":
            return True
        if playing.over:
            self._end(playing)
        return not playing.over

    def _close(self, playing: CausalState) -> None:
        closing = {
            "thought": self._close_thought,
            "answer": self._close_turn,
            "memory": self._close_write,
        }
        closing[playing.phase](playing)

    def _open(self, playing: CausalState) -> None:
        task = playing.task
        if task.initial_memory is not None:
            playing.first = self.tokenizer.memory.unpacked(task.initial_memory)
        playing.held = playing.first
        start = playing.environment.reset(task)
        turn = opened(self.tokenizer, start.opening, silent=start.observation is None)
        playing.turns.append(turn)
        playing.observation = start.observation
        playing.turn = task.first_turn - 1
        if playing.goes_on:
            self._look(playing)
        else:
            self._remember(playing)

    def _remember(self, playing: CausalState) -> None:
        """Update the memory by the last turn, or begin to write it, and go on to the observation.
        Raises DataFailure where that does not fit the model."""
        turn, memory, task = playing.turns[-1], self.tokenizer.memory, playing.task
        told = bool(turn.query_ids)
        if told and not memory.written:
            playing.held = memory.remember(playing.held, turn.remembered_ids)
            self.tally.writes += 1
        asks = playing.observation is not None and not task.erase_memory
        if told and memory.written and (asks or task.return_memory):
            prompt = self.tokenizer.write_prompt(playing.held, *turn.exchange)
            playing.phase = "memory"
            room = memory.room(prompt, self.sampling.max_new_tokens, writes=True)
            self._generate(playing, prompt, room, task.seed_of("write", playing.turn))
        else:
            self._look(playing)

    def _generate(self, playing: CausalState, context: list[int], room: int, seed: int) -> None:
        """Make these ids what comes before the next tokens."""
        playing.context, playing.room, playing.seed = context, room, seed
        playing.answer, playing.log_probs, playing.unfiltered = [], [], []
        playing.complete = False
        playing.prompts += 1

    def _close_write(self, playing: CausalState) -> None:
        """Take what was written for the memory, and go on to the observation."""
        ids, memory = playing.answer, self.tokenizer.memory
        playing.phase = "answer"
        playing.held = memory.remember(playing.held, ids)
        playing.writes.append(
            MemoryWrite(
                turn=len(playing.turns) - 1,
                prompt_ids=playing.context,
                ids=ids,
                log_probs=playing.log_probs,
                unfiltered_log_probs=playing.unfiltered,
                text=self.tokenizer.decode(ids),
                cut=ids[-1] != memory.end,
            )
        )
        self.tally.writes += 1
        self._look(playing)

    def _look(self, playing: CausalState) -> None:
        """Ask the observation. Raises DataFailure where it does not fit the model."""
        observation = playing.observation
        if observation is None:
            return
        playing.turn += 1
        if playing.task.erase_memory:
            playing.held = playing.first
        playing.prompt = self.tokenizer.prompt(observation.query)
        playing.reference = self.tokenizer.answer(observation.reference)
        context = self.tokenizer.memory.context(playing.held, playing.prompt)
        playing.thought = None
        if playing.cut_off:
            playing.next_query = playing.prompt
        if self.tokenizer.thinks and asked_thought(observation.think, self.sampling) is not None:
            playing.phase = "thought"
            context = [*context, *self.tokenizer.think_open]
            room = thought_room(self.tokenizer, self.sampling, context)
            seed = playing.task.seed_of("thought", playing.turn)
            self._generate(playing, context, room, seed)
        else:
            self._answer(playing, context)

    def _answer(self, playing: CausalState, context: list[int]) -> None:
        playing.phase = "answer"
        longest = self.sampling.max_new_tokens
        if playing.thought is not None:
            longest -= len(playing.thought.ids)
        room = self.tokenizer.memory.room(context, longest, writes=False)
        self._generate(playing, context, room, playing.task.answer_seed(playing.turn))

    def _close_thought(self, playing: CausalState) -> None:
        """Take the thought, put an end behind it where it has none, and go on to the answer."""
        ids, context = playing.answer, playing.context
        playing.thought = SeparateThought(
            turn=playing.turn,
            before_ids=self.tokenizer.think_open,
            ids=ids,
            log_probs=playing.log_probs,
            after_ids=self.tokenizer.missing_end(ids),
            unfiltered_log_probs=playing.unfiltered,
        )
        playing.thoughts.append(playing.thought)
        self._answer(playing, [*context, *ids, *playing.thought.after_ids])

    def _close_turn(self, playing: CausalState) -> None:
        """Give the answer to the environment, and remember the interaction."""
        asked = playing.observation
        assert asked is not None, "an answer answers something"
        text = self._text(playing)
        self.tally.interactions += 1
        with self.timer("environment"):
            outcome = playing.environment.step(text)
        playing.cut_off = outcome.truncated or playing.turn == playing.task.max_turns
        playing.observation, playing.figures = outcome.observation, outcome.figures
        thought = playing.thought
        said = "" if thought is None else self.tokenizer.thought_text(thought.ids)
        playing.turns.append(answered_turn(playing, asked, text, said, outcome.reward))
        self._remember(playing)

    def _text(self, playing: CausalState) -> str:
        """The answer so far."""
        return self._stops.cut(self.tokenizer.decode(playing.answer))

    def _end(self, playing: CausalState) -> None:
        playing.environment.close()
        final = self.tokenizer.memory.packed(playing.held)
        self._ended.append(
            episode_of(
                playing,
                final_memory=final if playing.task.return_memory else None,
                memory_hash=memory_hash(final),
            )
        )
        self.tally.episodes += 1

    def _fail(self, playing: CausalState, why: str) -> None:
        playing.environment.close()
        self._ended.append(failed_episode(playing, why))
        self.tally.failed += 1


def thought_room(tokenizer: CausalTokenizer, sampling: Sampling, context: Sequence[int]) -> int:
    """The most tokens of a thought after a context, which leave one for the end of the answer.
    Raises DataFailure where there is no room for any."""
    most = sampling.max_think_tokens or sampling.max_new_tokens - 1
    left = tokenizer.memory.max_tokens - len(context) - len(tokenizer.think_close) - 1
    if min(most, left) < 1:
        raise DataFailure(
            f"a prompt of {len(context)} tokens leaves no room for a thought and an answer in a "
            f"sequence of {tokenizer.memory.max_tokens}"
        )
    return min(most, left)


def opened(tokenizer: CausalTokenizer, opening: Interaction, silent: bool) -> Turn:
    """The turn that is remembered first. Where nothing is told it has no tokens: a prompt around
    nothing would be one more thing for the model to go on from."""
    turn = opening_turn(tokenizer, opening, silent)
    told = opening.query.strip() or opening.answer.strip()
    return turn if told else replace(turn, query_ids=[], answer_ids=[], reference_ids=[])
