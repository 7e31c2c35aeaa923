"""Continuous batching of conversations with a causal language model.

Each slot plays one episode. All slots take one decoding step together; those whose answers end give
them to their environments, remember the interaction, and come back with the next prompt, while the
others keep decoding.

Invariant: an episode depends on its task and the weights, not on the slot, the batch or the order
it is played in. Every random number is a function of the task's seed, the turn and the position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from common.config.environment import CONVERSATION, EnvironmentSettings
from common.config.rollout import Sampling
from common.data.causal_tokenizer import CausalTokenizer
from common.data.dialogue import Interactions, memory_hash, packed, unpacked
from common.episode import Episode, Interaction, Task, Turn
from common.failures import DataFailure
from common.seeding import uniforms
from common.telemetry.timing import PhaseTimer
from rollout.environments.table import ENVIRONMENTS
from rollout.policies.causal.rows import Rows
from rollout.policies.episode_state import (
    EngineCounts,
    EpisodeState,
    answered_turn,
    episode_of,
    failed_episode,
    opening_turn,
)
from rollout.policies.sampling import Sampled, sample
from rollout.policies.stopping import StopStrings
from rollout.protocols import Observation

BACKEND = "transformers"
"""Name of what computes here, as episodes hold it."""


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


class CausalEngine:
    """slots: episodes in flight. The model's weights may be changed in place while nothing is in
    flight."""

    def __init__(
        self,
        model: Any,
        tokenizer: CausalTokenizer,
        slots: int,
        sampling: Sampling,
        device: torch.device,
        environment: EnvironmentSettings = CONVERSATION,
    ):
        self.tokenizer, self.sampling, self.timer = tokenizer, sampling, PhaseTimer()
        self.tally = EngineCounts()
        self._slots, self._environment = slots, environment
        self._rows = Rows(model, device, tokenizer.window.max_tokens)
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
                CausalState(task, self._given, environment, version, worker, BACKEND)
            )
            self._given += 1

    def cancel(self, task: str, reason: str) -> bool:
        for playing in [each for each in self._waiting if each.task.id == task]:
            self._waiting.remove(playing)
            self._fail(playing, reason)
            return True
        for row, playing in enumerate(self._live):
            if playing.task.id == task:
                self._fail(playing, reason)
                self._replace([other for other in range(len(self._live)) if other != row], [])
                return True
        return False

    @torch.inference_mode()
    def advance(self) -> list[Episode]:
        """One step of all that is in flight; the episodes that ended in it."""
        if self._live:
            self._step()
        complete = sum(playing.complete for playing in self._live)
        ready = complete + min(len(self._waiting), self._slots - len(self._live))
        # Reading prompts for several rows costs hardly more than for one: they wait for each other,
        # a step or two, until an eighth of the rows is ready.
        if ready >= max(1, (len(self._live) + ready) // 8):
            self._turn_over()
        came, self._ended = self._ended, []
        return came

    # --- one step ---------------------------------------------------------------------------------

    def _step(self) -> None:
        live = self._live
        with self.timer("decode"):
            logits = self._rows.step([playing.last for playing in live])
        with self.timer("sample"):
            sampled = sample(
                logits,
                self._uniforms().to(logits.device),
                self.sampling,
                torch.tensor([playing.task.greedy for playing in live], device=logits.device)
                if any(playing.task.greedy for playing in live)
                else None,
            )
        with self.timer("sync"):
            broken = self._take(sampled)
        self.tally.steps += 1
        self.tally.slot_steps += self._slots
        if broken:
            for row in broken:
                token = len(live[row].answer)
                self._fail(live[row], f"log-prob of token {token} is not finite")
            self._replace([row for row in range(len(live)) if row not in broken], [])

    def _uniforms(self) -> torch.Tensor:
        """A number in [0, 1) for each row."""
        keys = [playing.task.answer_seed(playing.turn) for playing in self._live]
        positions = [len(playing.answer) for playing in self._live]
        drawn = uniforms(np.array(keys, np.int64), np.array(positions, np.int64))
        return torch.from_numpy(drawn)

    def _take(self, sampled: Sampled) -> list[int]:
        """Add its token to each answer that is not complete; the rows whose log-probs are not
        finite."""
        tokens, log_probs = sampled.tokens.tolist(), sampled.log_probs.tolist()
        unfiltered = None if sampled.unfiltered is None else sampled.unfiltered.tolist()
        broken = []
        for row, playing in enumerate(self._live):
            if playing.complete:
                continue
            if not math.isfinite(log_probs[row]):
                broken.append(row)
                continue
            playing.answer.append(tokens[row])
            playing.log_probs.append(log_probs[row])
            if unfiltered is not None:
                playing.unfiltered.append(unfiltered[row])
            full = len(playing.answer) >= playing.room
            ends = tokens[row] == self.tokenizer.eos_id or full
            playing.complete = ends or (bool(self._stops) and self._stops.reached(playing.answer))
            self.tally.tokens += 1
            self.tally.row_steps += 1
        return broken

    # --- turns ------------------------------------------------------------------------------------

    def _turn_over(self) -> None:
        """Close the answers that are complete, and give every free slot its next prompt."""
        kept = [row for row, playing in enumerate(self._live) if not playing.complete]
        asking = []
        for playing in [each for each in self._live if each.complete]:
            if self._goes_on(playing, self._close_turn):
                asking.append(playing)
        while self._waiting and len(kept) + len(asking) < self._slots:
            playing = self._waiting.pop(0)
            if self._goes_on(playing, self._open):
                asking.append(playing)
        self._replace(kept, asking)

    def _goes_on(self, playing: CausalState, step: Any) -> bool:
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

    def _replace(self, kept: list[int], asking: list[CausalState]) -> None:
        with self.timer("prefill"):
            self._rows.change(kept, [playing.context for playing in asking])
        self._live = [*(self._live[row] for row in kept), *asking]

    def _open(self, playing: CausalState) -> None:
        task = playing.task
        if task.initial_memory is not None:
            playing.first = unpacked(task.initial_memory)
        start = playing.environment.reset(task)
        turn = opened(self.tokenizer, start.opening, silent=start.observation is None)
        playing.turns.append(turn)
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
        text = self._stops.cut(self.tokenizer.decode(playing.answer))
        self.tally.interactions += 1
        with self.timer("environment"):
            outcome = playing.environment.step(text)
        cut_off = outcome.truncated or playing.turn == playing.task.max_turns
        playing.observation = outcome.observation
        turn = answered_turn(playing, asked, text, "", outcome.reward)
        playing.turns.append(turn)
        playing.held = self.tokenizer.window.remember(playing.held, turn.remembered_ids)
        self.tally.writes += 1
        self._look(playing, outcome.observation)
        if cut_off and outcome.observation is not None:
            playing.next_query = playing.prompt

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
