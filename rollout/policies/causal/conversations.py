"""Conversations with a causal language model, turn by turn: what is the same whoever generates.

Each slot plays one episode: the prompt of an observation after the remembered interactions, an
answer, the environment, the interaction remembered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from common.config.environment import CONVERSATION, EnvironmentSettings
from common.config.rollout import Sampling
from common.data.causal_tokenizer import CausalTokenizer
from common.data.dialogue import Interactions, memory_hash, packed, unpacked
from common.episode import Episode, Interaction, Task, Turn
from common.failures import DataFailure
from common.telemetry.timing import PhaseTimer
from rollout.environments.table import ENVIRONMENTS
from rollout.policies.episode_state import (
    EngineCounts,
    EpisodeState,
    answered_turn,
    episode_of,
    failed_episode,
    opening_turn,
)
from rollout.policies.stopping import StopStrings
from rollout.protocols import Observation, WorksAhead


@dataclass(slots=True)
class CausalState(EpisodeState):
    """One episode in progress."""

    held: Interactions = ()
    """Interactions that are remembered now."""
    first: Interactions = ()
    """Those that the episode began with."""
    context: Sequence[int] = ()
    """Ids before the current answer."""
    room: int = 0
    """The most tokens that the answer may have."""

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
        """Add a token to an answer; `complete` where it ends it."""
        playing.answer.append(token)
        playing.log_probs.append(log_prob)
        ends = token == self.tokenizer.eos_id or len(playing.answer) >= playing.room
        playing.complete = ends or (bool(self._stops) and self._stops.reached(playing.answer))
        if playing.complete and isinstance(playing.environment, WorksAhead):
            playing.environment.begin(self._text(playing))
        self.tally.tokens += 1
        self.tally.row_steps += 1

    # --- turns ------------------------------------------------------------------------------------

    def _asking(self, complete: Sequence[CausalState], free: int) -> list[CausalState]:
        """Close the answers that are complete, and begin episodes that wait in the slots that are
        free then. free: without those of `complete`. Those that have a prompt to answer now."""
        asking = [playing for playing in complete if self._goes_on(playing, self._close_turn)]
        free += len(complete)
        while self._waiting and len(asking) < free:
            playing = self._waiting.pop(0)
            if self._goes_on(playing, self._open):
                asking.append(playing)
        return asking

    def _goes_on(self, playing: CausalState, step: Callable[[CausalState], None]) -> bool:
        """Take a step of the episode; whether it has a prompt to answer after it. One that ended or
        failed is put among those that come back."""
        try:
            step(playing)
        except DataFailure as failure:
            self._fail(playing, str(failure))
            return False
        if playing.over:
            self._end(playing)
        return not playing.over

    def _open(self, playing: CausalState) -> None:
        task = playing.task
        if task.initial_memory is not None:
            playing.first = unpacked(task.initial_memory)
        start = playing.environment.reset(task)
        turn = opened(self.tokenizer, start.opening, silent=start.observation is None)
        playing.turns.append(turn)
        playing.turn, playing.held = task.first_turn - 1, playing.first
        if not playing.goes_on:
            playing.held = self.tokenizer.window.remember(playing.first, turn.remembered_ids)
            self.tally.writes += 1
        self._look(playing, start.observation)

    def _look(self, playing: CausalState, observation: Observation | None) -> None:
        """Make an observation the next one. Raises DataFailure where it does not fit the model."""
        playing.observation = observation
        if observation is None:
            return
        playing.turn += 1
        if playing.task.erase_memory:
            playing.held = playing.first
        playing.prompt = self.tokenizer.prompt(observation.query)
        playing.reference = self.tokenizer.answer(observation.reference)
        playing.context = self.tokenizer.window.context(playing.held, playing.prompt)
        longest = self.tokenizer.window.max_tokens - len(playing.context)
        playing.room = min(self.sampling.max_new_tokens, longest)
        playing.answer, playing.log_probs, playing.unfiltered = [], [], []
        playing.complete = False

    def _close_turn(self, playing: CausalState) -> None:
        """Give the answer to the environment, and remember the interaction."""
        asked = playing.observation
        assert asked is not None, "an answer answers something"
        text = self._text(playing)
        self.tally.interactions += 1
        with self.timer("environment"):
            outcome = playing.environment.step(text)
        cut_off = outcome.truncated or playing.turn == playing.task.max_turns
        playing.observation, playing.figures = outcome.observation, outcome.figures
        turn = answered_turn(playing, asked, text, "", outcome.reward)
        playing.turns.append(turn)
        playing.held = self.tokenizer.window.remember(playing.held, turn.remembered_ids)
        self.tally.writes += 1
        self._look(playing, outcome.observation)
        if cut_off and outcome.observation is not None:
            playing.next_query = playing.prompt

    def _text(self, playing: CausalState) -> str:
        """The answer so far."""
        return self._stops.cut(self.tokenizer.decode(playing.answer))

    def _end(self, playing: CausalState) -> None:
        playing.environment.close()
        final = packed(playing.held)
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


def opened(tokenizer: CausalTokenizer, opening: Interaction, silent: bool) -> Turn:
    """The turn that is remembered first. Where nothing is told it has no tokens: a prompt around
    nothing would be one more thing for the model to go on from."""
    turn = opening_turn(tokenizer, opening, silent)
    told = opening.query.strip() or opening.answer.strip()
    return turn if told else replace(turn, query_ids=[], answer_ids=[], reference_ids=[])
