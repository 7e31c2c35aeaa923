"""Continuous batching of conversations with a Reactive Transformer.

Each slot plays one episode. All slots that have a query take one decoding step together; the ones
whose answers end in it are written to their memories together, and go on with their next query, or
with the next task, while the others keep decoding.

Invariant: an episode depends on its task and the weights, not on the slot, the batch or the order
it is played in, nor on what becomes of the others: those that end, fail or are cancelled. Tokens
are the same and log-probs agree to the rounding of matrix products of different height.
"""

from __future__ import annotations

import math
import time
from bisect import insort
from collections.abc import Sequence

import torch
from torch import Tensor

from common.config.environment import CONVERSATION, EnvironmentSettings
from common.config.names import BackendName
from common.config.rollout import Sampling
from common.data.tokenizer import ConversationTokenizer
from common.episode import Episode, Task
from common.failures import DataFailure
from common.models.reactive.model import ReactiveTransformer
from common.telemetry.timing import PhaseTimer
from rollout.environments.table import ENVIRONMENTS
from rollout.policies.episode_state import (
    EngineCounts,
    EpisodeState,
    answer_text,
    answered_turn,
    asked_thought,
    episode_of,
    failed_episode,
    opening_turn,
    thought_text,
)
from rollout.policies.reactive.memory_change import slot_changes
from rollout.policies.reactive.memory_files import memory_hash, packed, unpacked
from rollout.policies.reactive.slots import (
    Slots,
    answer_room,
    check_interaction,
)
from rollout.policies.stopping import StopStrings
from rollout.protocols import Observation


class ReactiveEngine:
    """slots: episodes in flight. The model's weights may be changed in place while nothing is in
    flight.

    `run` plays tasks to their end. Underneath, `add` queues tasks, `advance` takes one step of all
    that is in flight, and `cancel` takes one out, at any time between two steps.
    """

    def __init__(
        self,
        model: ReactiveTransformer,
        tokenizer: ConversationTokenizer,
        slots: int,
        sampling: Sampling,
        device: torch.device | str | None = None,
        environment: EnvironmentSettings = CONVERSATION,
        backend: BackendName = "auto",
    ):
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self._settings = environment
        self.timer = PhaseTimer()
        self.tally = EngineCounts()
        self._slots = Slots(
            model,
            slots,
            sampling,
            torch.device(device) if device is not None else model.device,
            self.timer,
            backend,
        )
        self._stops = StopStrings(sampling.stop, tokenizer)
        self._live: list[EpisodeState] = []
        self._waiting: list[EpisodeState] = []
        self._ended: list[tuple[int, Episode]] = []
        self._given = 0

    @property
    def backend(self) -> str:
        """Name of the backend that computes."""
        return self._slots.backend.name

    @property
    def in_flight(self) -> int:
        """Episodes that were added and have not come back."""
        return len(self._live) + len(self._waiting) + len(self._ended)

    def run(self, tasks: Sequence[Task], *, version: int = 0, worker: str = "") -> list[Episode]:
        """One episode per task, in the order of tasks. version, worker: what the episodes are to
        say they were played with.

        An episode that fails, because a query does not fit the model or its environment raises, has
        status "failed", and its last turn says why.
        """
        if self.in_flight:
            raise RuntimeError(
                f"{self.in_flight} episodes are in flight: `run` is for an engine that has "
                "nothing to do"
            )
        first = self._given
        self.add(tasks, version=version, worker=worker)
        episodes: dict[int, Episode] = {}
        try:
            while self.in_flight:
                episodes.update(self._advance())
        finally:
            self._live.clear()
            self._waiting.clear()
            self._ended.clear()
        return [episodes[first + i] for i in range(len(tasks))]

    def add(self, tasks: Sequence[Task], *, version: int = 0, worker: str = "") -> None:
        """Queue tasks."""
        if not self.in_flight:
            self._slots.refresh()
        for task in tasks:
            environment = ENVIRONMENTS[task.environment].make(self._settings)
            playing = EpisodeState(task, self._given, environment, version, worker, self.backend)
            self._given += 1
            # Longest conversations first, so that the last ones to end are short and few slots
            # stand empty.
            insort(self._waiting, playing, key=lambda each: (-_length(each.task), each.number))

    def advance(self) -> list[Episode]:
        """One step of all that is in flight; the episodes that ended in it, in no particular
        order."""
        return [episode for _, episode in self._advance()]

    def cancel(self, task: str, reason: str) -> bool:
        """Take the episode of a task out, wherever it is; False where it is not in flight. It comes
        back from the next `advance`, with the turns that were complete, as failed for `reason`."""
        for playing in [each for each in self._waiting if each.task.id == task]:
            self._waiting.remove(playing)
            self._fail(playing, reason)
            return True
        for row, playing in enumerate(self._live):
            if playing.task.id == task:
                self._fail(playing, reason)
                self._slots.clear([row])  # it may hold what is not finite and has not shown yet
                self._vacate([row])
                return True
        return False

    # --- scheduling -------------------------------------------------------------------------------

    @torch.inference_mode()
    def _advance(self) -> list[tuple[int, Episode]]:
        """As `advance`, with the number of each task."""
        ended = self._step() if self._live else []
        if self._due(ended):
            self._turn_over(ended)
        came, self._ended = self._ended, []
        return came

    def _due(self, ended: list[int]) -> bool:
        """Whether the rows whose answers are complete are to go on now, and empty slots to be
        filled.

        They wait, a step or two, until an eighth of the rows is ready: reading and writing for four
        costs hardly more than for one.
        """
        ready = len(ended) + min(len(self._waiting), self._slots.count - len(self._live))
        return ready >= max(1, (len(self._live) + ready) // 8)

    def _step(self) -> list[int]:
        """One token for every live row; all rows whose answers are complete."""
        tokens, stopping = self._slots.step(len(self._live)), bool(self._stops)
        ended, broken = [], []
        given = 0
        for row, (playing, token, log_prob, ends) in enumerate(
            zip(self._live, tokens.ids, tokens.log_probs, tokens.ends, strict=True)
        ):
            if not playing.complete:
                if not math.isfinite(log_prob):
                    broken.append(row)
                    continue
                playing.answer.append(token)
                playing.log_probs.append(log_prob)
                if tokens.unfiltered is not None:
                    playing.unfiltered.append(tokens.unfiltered[row])
                playing.complete = ends or (stopping and self._stops.reached(playing.answer))
                given += 1
            if playing.complete:
                ended.append(row)
        self.tally.tokens += given
        self.tally.row_steps += given
        self.tally.steps += 1
        self.tally.slot_steps += self._slots.count
        if broken:
            for row in broken:
                self._fail(
                    self._live[row],
                    f"log-prob of token {len(self._live[row].answer)} is not finite",
                )
            self._slots.clear(broken)
            self._vacate(broken)
            ended = [row for row, playing in enumerate(self._live) if playing.complete]
        return ended

    def _room(self, playing: EpisodeState) -> int:
        """The most tokens that the answer to the current prompt may have."""
        return answer_room(self.model.config, self.sampling, playing.prompt)

    def _turn_over(self, ended: list[int]) -> None:
        """Write what ended to memory, and give every slot its next query or the next episode.

        Openings of new episodes are written in the same batch as the answers that made room for
        them.
        """
        live = self._live
        broken = [row for row in ended if not self._close_turn(live[row])]
        ended = [row for row in ended if row not in broken]
        staying = [row for row in ended if not live[row].over]
        leaving = [row for row in ended if live[row].over]
        free = leaving + broken + list(range(len(live), self._slots.count))
        coming = self._begin(len(free))

        memories, over = self._write(staying, coming, leaving)
        for row, memory in zip(leaving, over, strict=True):
            self._end(live[row], memory)
        silent = [i for i, playing in enumerate(coming) if playing.over]
        for i in silent:
            self._end(coming[i], memories[len(staying) + i])
        if silent:
            asking = [i for i in range(len(coming)) if i not in silent]
            memories = torch.cat((memories[: len(staying)], memories[len(staying) :][asking]))
            coming = [coming[i] for i in asking]
        for row, playing in zip(free, coming, strict=False):
            live[row : row + 1] = [playing]
        self._ask(staying + free[: len(coming)], memories)
        self._vacate((leaving + broken)[len(coming) :])

    def _vacate(self, rows: Sequence[int]) -> None:
        """Take rows out of flight; the last ones move into their places."""
        for row in sorted(rows, reverse=True):
            last = self._live.pop()
            if row < len(self._live):
                self._live[row] = last
                self._slots.move(len(self._live), row)

    def _write(
        self, staying: list[int], coming: Sequence[EpisodeState], leaving: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Memories after the last turn, [episodes, layers, slots, width]: of episodes that go on,
        which are those in rows `staying` and those that begin, and of those that end, in rows
        `leaving`."""
        writing = (
            [self._live[row] for row in staying]
            + list(coming)
            + [self._live[row] for row in leaving]
        )
        memory, going = self._slots.memory, len(staying) + len(coming)
        before = memory.new_empty((len(writing), *memory.shape[1:]))
        for rows, part in ((staying, before[: len(staying)]), (leaving, before[going:])):
            torch.index_select(
                memory, 0, torch.tensor(rows, dtype=torch.int64, device=memory.device), out=part
            )
        self._start(coming, before[len(staying) : going])
        # What goes on in the middle of a conversation has nothing to tell: memory holds it.
        telling = [i for i, playing in enumerate(writing) if not playing.goes_on]
        if telling:
            self.tally.writes += len(telling)
            self.tally.write_batches += 1
            told = before if len(telling) == len(writing) else before[telling]
            after = self._slots.remember(
                told, [writing[i].turns[-1].remembered_ids for i in telling]
            )
            for i, change in zip(telling, slot_changes(told, after), strict=True):
                writing[i].changes.append(change)
            if told is before:
                before = after
            else:
                before[telling] = after
        return before[:going], before[going:]

    def _start(self, playing: Sequence[EpisodeState], memories: Tensor) -> None:
        """Put into memories [playing, layers, slots, width] what episodes begin with."""
        if playing:
            memories.copy_(self.model.initial_memory([each.task.seed for each in playing]))
        for i, each in enumerate(playing):
            if each.task.initial_memory is not None:
                memories[i] = unpacked(each.task.initial_memory, self.model.config).to(memories)

    def _ask(self, rows: list[int], memories: Tensor) -> None:
        asked = [self._live[row] for row in rows]
        for i, playing in enumerate(asked):
            if playing.task.erase_memory:
                self._start([playing], memories[i : i + 1])
        for playing in asked:
            playing.answer, playing.log_probs, playing.unfiltered = [], [], []
            playing.complete, playing.asked_at = False, time.perf_counter()
        self._slots.start(rows, memories)
        self._slots.ask(
            rows,
            [playing.prompt for playing in asked],
            [playing.task.answer_seed(playing.turn) for playing in asked],
            [self._room(playing) for playing in asked],
            [playing.task.greedy for playing in asked],
        )

    # --- episodes and their records ---------------------------------------------------------------

    def _begin(self, count: int) -> list[EpisodeState]:
        """Up to `count` of the episodes that wait, with their openings and first queries."""
        coming: list[EpisodeState] = []
        while self._waiting and len(coming) < count:
            playing = self._waiting.pop(0)
            try:
                self._open(playing)
            except DataFailure as failure:
                self._fail(playing, str(failure))
            else:
                coming.append(playing)
        return coming

    def _open(self, playing: EpisodeState) -> None:
        """Raises DataFailure where the environment cannot begin, or what it says does not fit the
        model."""
        task = playing.task
        if task.initial_memory is not None:
            unpacked(task.initial_memory, self.model.config)
        start = playing.environment.reset(task)
        turn = opening_turn(self.tokenizer, start.opening, silent=start.observation is None)
        playing.turns.append(turn)
        playing.turn = task.first_turn - 1
        if not playing.goes_on:
            check_interaction(self.model.config, turn.remembered_ids)
        self._look(playing, start.observation)

    def _look(self, playing: EpisodeState, observation: Observation | None) -> None:
        """Make an observation the next one. Raises DataFailure where it does not fit the model."""
        playing.observation = observation
        if observation is None:
            return
        playing.turn += 1
        thought = asked_thought(observation.think, self.sampling)
        prompt = self.tokenizer.prompt(observation.query, think=thought is not None)
        reference = self.tokenizer.answer(observation.reference, thought)
        answer_room(self.model.config, self.sampling, prompt)
        if playing.task.teacher_forcing:
            check_interaction(self.model.config, [*prompt, *reference])
        playing.prompt, playing.reference = prompt, reference

    def _close_turn(self, playing: EpisodeState) -> bool:
        """Give the answer to the environment and record the turn. False where the episode cannot go
        on, and has failed."""
        text = self._stops.cut(answer_text(self.tokenizer, playing.prompt, playing.answer))
        thought = thought_text(self.tokenizer, playing.prompt, playing.answer)
        asked = playing.observation
        assert asked is not None, "an answer answers something"
        self.tally.interactions += 1
        self.tally.answer_seconds += time.perf_counter() - playing.asked_at
        try:
            with self.timer("environment"):
                outcome = playing.environment.step(text)
            cut_off = outcome.truncated or playing.turn == playing.task.max_turns
            playing.observation, playing.figures = outcome.observation, outcome.figures
            playing.turns.append(answered_turn(playing, asked, text, thought, outcome.reward))
            self._look(playing, outcome.observation)
        except DataFailure as failure:
            self._fail(playing, str(failure))
            return False
        if cut_off and outcome.observation is not None:
            playing.next_query = playing.prompt
        return True

    def _end(self, playing: EpisodeState, memory: Tensor) -> None:
        playing.environment.close()
        final = packed(memory)
        ended = episode_of(
            playing,
            final_memory=final if playing.task.return_memory else None,
            memory_hash=memory_hash(final),
        )
        self._ended.append((playing.number, ended))
        self.tally.episodes += 1

    def _fail(self, playing: EpisodeState, why: str) -> None:
        playing.environment.close()
        self._ended.append((playing.number, failed_episode(playing, why)))
        self.tally.failed += 1


def _length(task: Task) -> int:
    """Answers that an episode will have, as far as its task says."""
    return (task.max_turns or 0) if task.row is None else len(task.row.interactions)
