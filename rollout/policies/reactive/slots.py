"""Slots: the state of several Reactive Transformer episodes on one device, and the four things that
can be done to it.

    start     put an episode's memory into a row
    ask       put a query before a row (prefill); its answer begins
    step      one token for each of the first rows
    remember  write ended interactions to memories

Rows in use are 0 … n-1 (`move` closes holes), so nothing computes for an empty one. What a row
computes depends on that row alone. All buffers are allocated once; the host waits for the device
once per step, for the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.config.names import BackendName
from common.config.rollout import Sampling
from common.data.special_tokens import ANSWER, thinks
from common.failures import DataFailure
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.seeding import uniforms
from common.telemetry.timing import PhaseTimer
from rollout.policies.reactive.backend import make_backend
from rollout.policies.reactive.cache import Reach
from rollout.policies.sampling import Sampled, sample

NO_THOUGHT = -1
"""Tokens that are left of a thought, where there is none or it has no limit."""


class Tokens(NamedTuple):
    """One for each of the first rows."""

    ids: list[int]
    log_probs: list[float]
    """Not finite where a row's logits were not."""
    unfiltered: list[float] | None
    """As `Turn.unfiltered_log_probs`; None where no filter is on."""
    ends: list[bool]
    """Whether an answer is complete with its token: [EOS], or no room for another."""


def answer_room(config: RxTConfig, sampling: Sampling, prompt: Sequence[int]) -> int:
    """Tokens that an answer to `prompt` may have, at least 1. Raises DataFailure where the
    interaction leaves none."""
    room = min(sampling.max_new_tokens, config.max_tokens - len(prompt))
    if room < 1:
        raise DataFailure(
            f"a prompt of {len(prompt)} tokens leaves no room for an answer in an interaction "
            f"of {config.max_tokens}"
        )
    return room


def check_interaction(config: RxTConfig, interaction: Sequence[int]) -> None:
    """Raises DataFailure where it is too long to be written to memory."""
    if len(interaction) > config.max_tokens:
        raise DataFailure(
            f"an interaction of {len(interaction)} tokens is longer than the model's "
            f"{config.max_tokens}"
        )


class Slots:
    """timer: phases that take time; backend: computes, and keeps what tokens look at."""

    def __init__(
        self,
        model: ReactiveTransformer,
        count: int,
        sampling: Sampling,
        device: torch.device,
        timer: PhaseTimer,
        backend: BackendName,
    ):
        self.count, self.sampling, self.device, self.timer = count, sampling, device, timer
        config = self.config = model.config
        self.memory = torch.zeros(
            (count, config.layers, config.slots, config.width), device=device, dtype=model.dtype
        )
        self.backend = make_backend(backend, model, count, device)
        rows = self.backend.rows
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(rows, dtype=torch.int64, device=device)
        self._think = torch.full((rows,), NO_THOUGHT, dtype=torch.int64, device=device)
        self._uniforms = torch.zeros(
            (rows, sampling.max_new_tokens), dtype=torch.float64, device=device
        )
        self._greedy = torch.zeros(rows, dtype=torch.bool, device=device)
        self._filtered = sampling.filtered
        # The host's own copies, so that no decision waits for the device.
        self._length, self._room = np.zeros((2, count), np.int64)
        self._is_greedy = np.zeros(count, np.bool_)

    def refresh(self) -> None:
        """Take up the model's weights, which were changed in place. What is in flight would go on
        with other ones than it began with."""
        self.backend.refresh()

    @torch.inference_mode()
    def start(self, rows: Sequence[int], memories: Tensor) -> None:
        """memories [rows, layers, slots, width]: what each row remembers from now on. Its keys and
        values are made here, once."""
        if not rows:
            return
        with self.timer("prefill"):
            self.memory.index_copy_(0, torch.tensor(rows, device=self.device), memories)
            self.backend.read_memory(rows, memories)

    @torch.inference_mode()
    def remember(self, memories: Tensor, interactions: Sequence[Sequence[int]]) -> Tensor:
        """Memories [batch, layers, slots, width] after each was written with one interaction (ids),
        in one batch. Changes no row."""
        with self.timer("write"):
            return self.backend.write(memories, interactions)

    @torch.inference_mode()
    def ask(
        self,
        rows: Sequence[int],
        prompts: Sequence[Sequence[int]],
        keys: Sequence[int],
        rooms: Sequence[int],
        greedy: Sequence[bool],
    ) -> None:
        """Put a prompt before each row. keys: of each answer's random stream; rooms: tokens each
        answer may have (`answer_room`).

        The prompt's last token is left to the next step, which is the same for rows that begin and
        rows that go on.
        """
        if not rows:
            return
        with self.timer("prefill"):
            index = torch.tensor(rows, device=self.device)
            self.backend.fill(rows, [prompt[:-1] for prompt in prompts])
            longest = self.sampling.max_new_tokens
            drawn = uniforms(
                np.repeat(np.asarray(keys, dtype=np.int64), longest),
                np.tile(np.arange(longest), len(rows)),
            )
            self._uniforms[index] = torch.from_numpy(drawn).view(len(rows), longest).to(self.device)
            self._tokens[index] = torch.tensor(
                [prompt[-1] for prompt in prompts], device=self.device
            )
            self._positions[index] = torch.tensor(
                [len(prompt) - 1 for prompt in prompts], device=self.device
            )
            self._drawn[index] = 0
            budget = self.sampling.max_think_tokens
            self._think[index] = torch.tensor(
                [NO_THOUGHT if budget is None or not thinks(p) else budget for p in prompts],
                device=self.device,
            )
            self._greedy[index] = torch.tensor(list(greedy), device=self.device)
            for row, prompt, room, flag in zip(rows, prompts, rooms, greedy, strict=True):
                self._length[row], self._room[row], self._is_greedy[row] = len(prompt), room, flag

    @torch.inference_mode()
    def step(self, active: int) -> Tokens:
        """The next token of each of the first `active` rows, all of which must have been asked.
        Past an answer's end it means nothing."""
        reach, greedy = (
            self.backend.reach(active, int(self._length[:active].max())),
            bool(self._is_greedy[:active].any()),
        )
        numbers = self.backend.run((reach, greedy), lambda: self._advance(reach, greedy))
        with self.timer("sync"):
            ids, log_probs, unfiltered = numbers[:, :active].cpu().numpy()
        length, room = self._length[:active], self._room[:active]
        np.minimum(length + 1, self.config.max_tokens, out=length)
        room -= 1
        ends = (ids == self.config.eos_token_id) | (room <= 0)
        return Tokens(
            ids.astype(np.int64).tolist(),
            log_probs.tolist(),
            unfiltered.tolist() if self._filtered else None,
            ends.tolist(),
        )

    def _advance(self, reach: Reach, any_greedy: bool) -> Tensor:
        """One step of the first rows on the device: tokens, log-probs and unfiltered log-probs,
        float64 [3, rows].

        Reads and writes buffers that stay in place, and nothing else: a backend may replay it.
        """
        rows = reach.rows
        with self.timer("decode"):
            logits = self.backend.logits(self._tokens[:rows], self._positions[:rows], reach)
        with self.timer("sample"):
            drawn = self._drawn[:rows]
            chosen = self._uniforms[:rows].gather(1, drawn[:, None]).squeeze(1)
            sampled = sample(
                logits, chosen, self.sampling, self._greedy[:rows] if any_greedy else None
            )
            sampled = self._ended_thoughts(sampled, rows)
            self._tokens[:rows] = sampled.tokens
            # Clamped for rows whose answers are complete: they are computed along until they are
            # asked again.
            self._positions[:rows].add_(1).clamp_(max=self.config.max_tokens - 1)
            drawn.add_(1).clamp_(max=self.sampling.max_new_tokens - 1)
            unfiltered = sampled.log_probs if sampled.unfiltered is None else sampled.unfiltered
            return torch.stack(
                (sampled.tokens.double(), sampled.log_probs.double(), unfiltered.double())
            )

    def _ended_thoughts(self, sampled: Sampled, rows: int) -> Sampled:
        """The same with [A] in place of the token after a thought that is as long as it may be. It
        is certain then: its log-prob is 0."""
        left = self._think[:rows]
        over = left == 0
        tokens = torch.where(over, ANSWER, sampled.tokens)
        left.copy_(torch.where((tokens == ANSWER) | (left < 0), NO_THOUGHT, left - 1))
        log_probs = torch.where(over, 0.0, sampled.log_probs)
        unfiltered = sampled.unfiltered
        if unfiltered is not None:
            unfiltered = torch.where(over, 0.0, unfiltered)
        return Sampled(tokens, log_probs, unfiltered)

    @torch.inference_mode()
    def clear(self, rows: Sequence[int]) -> None:
        """Forget what rows hold that is not finite: a masked position takes part in sums with
        weight 0, and 0 × NaN is NaN."""
        for row in rows:
            self.backend.clear(row)

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Row `target` becomes what row `source` is."""
        self.backend.move(source, target, int(self._length[source]))
        for state in (
            self.memory,
            self._tokens,
            self._positions,
            self._drawn,
            self._think,
            self._uniforms,
            self._greedy,
        ):
            state[target] = state[source]
        self._length[target], self._room[target] = self._length[source], self._room[source]
        self._is_greedy[target] = self._is_greedy[source]
