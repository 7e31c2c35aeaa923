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
from torch.nn import functional as F

from common.config.rollout import Sampling
from common.data.bucketing import by_width
from common.data.padding import pad
from common.failures import DataFailure
from common.models.layers.batch_invariant import ROWS, TOKENS, round_up
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.seeding import uniforms
from common.telemetry.timing import PhaseTimer
from rollout.policies.reactive.cache import KeyValues, Prefill, Reach, Step
from rollout.policies.reactive.compiled import WRITE_ROWS, CompiledDecoder, CompiledMemory
from rollout.policies.reactive.cuda_graphs import StepGraphs, power_of_two
from rollout.policies.sampling import filters, sample

WRITE_CALL = 512
"""Tokens of padding that cost as much as one more call. Padding takes part in attention and in what
memory reads, not in the encoder."""


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


def _pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """As `pad`, to a multiple of `TOKENS`."""
    tokens, mask = pad(sequences)
    extra = (0, -tokens.shape[1] % TOKENS)
    return F.pad(tokens, extra), F.pad(mask, extra)


class Slots:
    def __init__(
        self,
        model: ReactiveTransformer,
        count: int,
        sampling: Sampling,
        device: torch.device,
        timer: PhaseTimer,
    ):
        self.model, self.count, self.sampling, self.device, self.timer = (
            model,
            count,
            sampling,
            device,
            timer,
        )
        config = self.config = model.config
        dtype = model.dtype
        self.memory = torch.zeros(
            (count, config.layers, config.slots, config.width), device=device, dtype=dtype
        )
        # Products of few rows round otherwise, and few heights need few kernels: up to `ROWS` - 1
        # unused rows are computed along.
        rows = round_up(count, ROWS) if device.type == "cpu" else power_of_two(count)
        # More threads are for larger models, whose products a library divides among them.
        compiled = device.type == "cpu" and dtype == torch.float32 and torch.get_num_threads() == 1
        past = (config.layers, rows, config.kv_heads, config.positions, config.head_dim)
        read = (
            config.layers,
            rows,
            config.cross_kv_heads or config.kv_heads,
            config.slots,
            config.head_dim,
        )
        self._past, self._read = (
            KeyValues(shape, device, dtype, by_dimension=compiled) for shape in (past, read)
        )
        self._rope = model.decoder.rope(device)
        self._compiled = (
            CompiledDecoder(model.decoder, self._past, self._read, self._rope) if compiled else None
        )
        self._writer = CompiledMemory(model, self._rope) if compiled else None
        self._every_row = np.arange(rows)
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self._drawn = torch.zeros(rows, dtype=torch.int64, device=device)
        self._uniforms = torch.zeros(
            (rows, sampling.max_new_tokens), dtype=torch.float64, device=device
        )
        self._greedy = torch.zeros(rows, dtype=torch.bool, device=device)
        self._filtered = filters(sampling)
        self._graphs = StepGraphs(device, rows, config.positions)
        # The host's own copies, so that no decision waits for the device.
        self._length, self._room = np.zeros((2, count), np.int64)
        self._is_greedy = np.zeros(count, np.bool_)

    def refresh(self) -> None:
        """Take up the model's weights, which were changed in place. What is in flight would go on
        with other ones than it began with."""
        for part in (self._compiled, self._writer):
            if part is not None:
                part.refresh()

    @torch.inference_mode()
    def start(self, rows: Sequence[int], memories: Tensor) -> None:
        """memories [rows, layers, slots, width]: what each row remembers from now on. Its keys and
        values are made here, once."""
        if not rows:
            return
        with self.timer("prefill"):
            if self._compiled is not None:
                self.memory.numpy()[list(rows)] = memories.numpy()
                self._compiled.read_memory(memories, np.array(rows))
                return
            index = torch.tensor(rows, device=self.device)
            self.memory.index_copy_(0, index, memories)
            keys, values = self.model.decoder.read_memory(memories)
            self._read.keys.index_copy_(1, index, keys)
            self._read.values.index_copy_(1, index, values)

    @torch.inference_mode()
    def remember(self, memories: Tensor, interactions: Sequence[Sequence[int]]) -> Tensor:
        """Memories [batch, layers, slots, width] after each was written with one interaction (ids),
        in one batch. Changes no row."""
        with self.timer("write"):
            if self._writer is not None:
                return self._writer.write(memories, interactions)
            groups = [list(range(len(interactions)))]
            if (
                self.device.type == "cpu"
            ):  # more rows at once than caches have room for are slower, not faster
                widths = [round_up(len(each), TOKENS) for each in interactions]
                groups = [
                    part[i : i + WRITE_ROWS]
                    for part in by_width(widths, WRITE_CALL)
                    for i in range(0, len(part), WRITE_ROWS)
                ]
            if len(groups) == 1:
                return self._remember(memories, interactions)
            after = torch.empty_like(memories)
            for group in groups:
                after[group] = self._remember(memories[group], [interactions[i] for i in group])
            return after

    def _remember(self, memories: Tensor, interactions: Sequence[Sequence[int]]) -> Tensor:
        tokens, mask = (part.to(self.device) for part in _pad(interactions))
        return self.model.remember(memories, self.model.encode(tokens, mask), mask)

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
            self._prefill(index, [prompt[:-1] for prompt in prompts])
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
            self._greedy[index] = torch.tensor(list(greedy), device=self.device)
            for row, prompt, room, flag in zip(rows, prompts, rooms, greedy, strict=True):
                self._length[row], self._room[row], self._is_greedy[row] = len(prompt), room, flag

    @torch.inference_mode()
    def step(self, active: int) -> Tokens:
        """The next token of each of the first `active` rows, all of which must have been asked.
        Past an answer's end it means nothing."""
        reach, greedy = (
            self._graphs.reach(active, int(self._length[:active].max())),
            bool(self._is_greedy[:active].any()),
        )
        numbers = self._graphs.run((reach, greedy), lambda: self._advance(reach, greedy))
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

        Reads and writes buffers that stay in place, and nothing else: on a GPU it is replayed.
        """
        rows = reach.rows
        with self.timer("decode"):
            embedded, positions = self.model.embedding(self._tokens[:rows]), self._positions[:rows]
            if self._compiled is not None:
                logits = self._compiled.logits(
                    self._compiled.hidden(embedded, self._every_row[:rows], positions.numpy())
                )
            else:
                context = Step(self._past, self._read, self._rope, positions, reach)
                logits = self.model.decoder.logits(
                    self.model.decoder(embedded[:, None], context)[:, 0]
                )
        with self.timer("sample"):
            drawn = self._drawn[:rows]
            chosen = self._uniforms[:rows].gather(1, drawn[:, None]).squeeze(1)
            sampled = sample(
                logits, chosen, self.sampling, self._greedy[:rows] if any_greedy else None
            )
            self._tokens[:rows] = sampled.tokens
            # Clamped for rows whose answers are complete: they are computed along until they are
            # asked again.
            self._positions[:rows].add_(1).clamp_(max=self.config.max_tokens - 1)
            drawn.add_(1).clamp_(max=self.sampling.max_new_tokens - 1)
            unfiltered = sampled.log_probs if sampled.unfiltered is None else sampled.unfiltered
            return torch.stack(
                (sampled.tokens.double(), sampled.log_probs.double(), unfiltered.double())
            )

    def _prefill(self, rows: Tensor, prompts: Sequence[Sequence[int]]) -> None:
        """Keys and values of prompts (ids), each of which may be empty, for the rows int64
        [prompts]."""
        lengths = [len(prompt) for prompt in prompts]
        if not any(lengths):
            return
        if self._compiled is None:
            tokens = _pad(prompts)[0].to(self.device)
            context = Prefill(self._past, self._read, rows, self._rope[: tokens.shape[1]])
            self.model.decoder.fill(self.model.embedding(tokens), context)
            return
        ids = [token for prompt in prompts for token in prompt]
        places = (
            np.repeat(rows.numpy(), lengths),
            np.concatenate([np.arange(length) for length in lengths]),
        )
        ids += [0] * (-len(ids) % ROWS)
        self._compiled.fill(self.model.embedding(torch.tensor(ids)), *places)

    @torch.inference_mode()
    def clear(self, rows: Sequence[int]) -> None:
        """Forget what rows hold that is not finite: a masked position takes part in sums with
        weight 0, and 0 × NaN is NaN."""
        for row in rows:
            self._past.clear(row)
            self._read.clear(row)

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Row `target` becomes what row `source` is."""
        self._past.move(source, target, self._length[source])
        self._read.move(source, target, self.config.slots)
        for state in (
            self.memory,
            self._tokens,
            self._positions,
            self._drawn,
            self._uniforms,
            self._greedy,
        ):
            state[target] = state[source]
        self._length[target], self._room[target] = self._length[source], self._room[source]
        self._is_greedy[target] = self._is_greedy[source]
