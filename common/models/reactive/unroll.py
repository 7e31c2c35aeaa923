"""Conversations as tensors, and the one pass over them that supervised and reinforcement learning
share.

The encoder never reads memory, so all interactions of a batch are encoded at once; only the cheap
memory recurrence runs turn by turn; then all answers are decoded at once, each with the memory it
had. Conversations are sorted by length and laid out turn by turn, so that the ones still running
are always the first rows and no turn is computed that does not exist.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from common.data.bucketing import by_width
from common.data.padding import pad
from common.models.layers.batch_invariant import TOKENS, round_up
from common.models.layers.exact import exact
from common.models.layers.feed_forward import Routing
from common.models.reactive.model import ReactiveTransformer

DECODE_CALL = 256
"""Tokens of padding that cost as much as one more call of the decoder, its backward pass
included."""


@dataclass(frozen=True)
class TurnTokens:
    """One turn for the learner: what was asked and answered, and what went to memory afterwards."""

    query: Sequence[int]
    answer: Sequence[int]
    remembered: Sequence[int]
    weight: float = 1.0
    """Weight of its answer in the loss; at 0 the answer need not be computed."""


@dataclass(frozen=True)
class ConversationBatch:
    """Rows are turns in turn-major order; `active[k]` conversations reach turn k, and they are the
    first ones."""

    tokens: Tensor
    """int64 [rows, tokens]: query and answer of the turns to decode."""
    answer_start: Tensor
    """[rows]: index of the first answer token."""
    length: Tensor
    """[rows]: real tokens."""
    weight: Tensor
    """[rows]: `TurnTokens.weight`."""
    written: Tensor
    """int64 [interactions, tokens]: what memory is written with, each different one once, in the
    order of the rows."""
    written_mask: Tensor
    written_by: Tensor
    """[rows]: the interaction that memory is written with after each turn."""
    active: tuple[int, ...]
    order: tuple[int, ...]
    """Position in the input of each conversation, in the order of this batch."""

    @property
    def turns(self) -> Tensor:
        """[rows]: turn index of each row."""
        return torch.repeat_interleave(torch.arange(len(self.active)), torch.tensor(self.active))

    @property
    def conversations(self) -> Tensor:
        """[rows]: input position of the conversation of each row."""
        return torch.cat([torch.tensor(self.order[:n]) for n in self.active])

    def answer_mask(self) -> Tensor:
        """bool [rows, tokens - 1]: True where position t predicts an answer token t + 1."""
        target = torch.arange(1, self.tokens.shape[1], device=self.tokens.device)
        return (target >= self.answer_start[:, None]) & (target < self.length[:, None])

    def real(self) -> Tensor:
        """bool [rows, tokens - 1]: True at positions that predict a real token."""
        target = torch.arange(1, self.tokens.shape[1], device=self.tokens.device)
        return target < self.length[:, None]

    def to(self, device: torch.device) -> ConversationBatch:
        moved = {
            name: getattr(self, name).to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return ConversationBatch(**moved, active=self.active, order=self.order)


def collate(conversations: Sequence[Sequence[TurnTokens]]) -> ConversationBatch:
    """Batch of conversations of any lengths; turn 0 is the opening one."""
    order = sorted(range(len(conversations)), key=lambda i: -len(conversations[i]))
    active = tuple(
        sum(len(c) > k for c in conversations) for k in range(len(conversations[order[0]]))
    )
    rows = [conversations[i][k] for k, n in enumerate(active) for i in order[:n]]
    tokens, mask = pad([[*row.query, *row.answer] for row in rows])
    seen: dict[tuple[int, ...], int] = {}
    written_by = [seen.setdefault(tuple(row.remembered), len(seen)) for row in rows]
    written, written_mask = pad([list(interaction) for interaction in seen])
    return ConversationBatch(
        tokens,
        torch.tensor([len(row.query) for row in rows]),
        mask.sum(-1),
        torch.tensor([row.weight for row in rows]),
        written,
        written_mask,
        torch.tensor(written_by),
        active,
        tuple(order),
    )


def memories(
    model: ReactiveTransformer,
    batch: ConversationBatch,
    initial: Tensor,
    bptt_turns: int | Literal["all"],
    shares: list[Tensor] | None = None,
) -> Tensor:
    """The memory that each row's answer was given with: [rows, layers, slots, width].

    initial: [conversations, layers, slots, width], in the order of the conversations handed to
    `collate`. bptt_turns: the gradient of an answer flows back through so many writes before it,
    whichever turn it is; 1 is the truncation of the articles, "all" lets a write learn from an
    answer many turns later. shares: as `MemoryAttention.forward` collects them, of writes that a
    gradient flows through.
    """
    return memories_and_before(model, batch, initial, bptt_turns, shares)[0]


class _Writes:
    """The writes of a batch. Each different interaction is encoded once, and its keys and values
    are made once: they do not depend on memory."""

    def __init__(
        self,
        model: ReactiveTransformer,
        batch: ConversationBatch,
        shares: list[Tensor] | None,
    ):
        self._model, self._batch, self._shares = model, batch, shares
        self.starts = [0, *itertools.accumulate(batch.active)]
        """First row of each turn."""
        lengths = batch.written_mask.sum(-1)[batch.written_by]
        self.widths = [int(part.max()) for part in lengths.split(batch.active)]
        """Longest interaction of each turn, in tokens; none is read wider."""
        # What the last turn leaves in memory is read by none.
        written = batch.written_by[: sum(batch.active[:-1])]
        self._prepared: Tensor | None = None
        if len(written):
            different = int(written.max()) + 1
            encoded = model.encode(batch.written[:different], batch.written_mask[:different])
            self._prepared = model.prepare(encoded)

    @cached_property
    def _of_turns(self) -> Sequence[Tensor]:
        """Prepared interactions by the turn after which they are written. Gathered at once: the
        gradient of a gathering is as large as all that is gathered from."""
        assert self._prepared is not None
        counts = self._batch.active[1:]
        rows = [
            torch.arange(start, start + n) for start, n in zip(self.starts, counts, strict=False)
        ]
        by = self._batch.written_by[torch.cat(rows).to(self._batch.written_by.device)]
        return self._prepared[by].split(counts)

    def rows(self, memory: Tensor, rows: Tensor, width: int) -> Tensor:
        """Memory after the turns in `rows`, of at most `width` tokens."""
        assert self._prepared is not None
        return self._write(memory, self._prepared[self._batch.written_by[rows]], rows, width)

    def turn(self, memory: Tensor, turn: int) -> Tensor:
        """Memory of the conversations that go on after a turn."""
        rows = slice(self.starts[turn], self.starts[turn] + len(memory))
        return self._write(memory, self._of_turns[turn], rows, self.widths[turn])

    def _write(self, memory: Tensor, prepared: Tensor, rows: slice | Tensor, width: int) -> Tensor:
        mask = self._batch.written_mask[self._batch.written_by[rows], :width]
        shares = self._shares if torch.is_grad_enabled() else None
        return self._model.write(memory, prepared[..., :width, :], mask, shares)


def memories_and_before(
    model: ReactiveTransformer,
    batch: ConversationBatch,
    initial: Tensor,
    bptt_turns: int | Literal["all"],
    shares: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """As `memories`; and for each row but those of turn 0 the memory before its last write, one
    write less of gradient behind it."""
    last = len(batch.active) - 1
    writes = _Writes(model, batch, shares)
    starts, widths = writes.starts, writes.widths
    depth = last + 1 if bptt_turns == "all" else bptt_turns
    states: list[Tensor] = [initial[list(batch.order)]]
    before: list[Tensor] = []
    for turn in range(last if depth == 1 else min(last, depth - 1)):
        old = states[-1][: batch.active[turn + 1]]
        before.append(old.detach() if depth == 1 else old)
        states.append(writes.turn(before[-1], turn))
    if 1 < depth <= last:
        # Each later answer has a window of its own: its last `depth` writes, from a memory without
        # gradient. All windows go side by side.
        past = [state.detach() for state in states]
        with torch.no_grad():
            while len(past) <= last - depth:
                past.append(writes.turn(past[-1][: batch.active[len(past)]], len(past) - 1))
        sizes = list(batch.active[depth:])
        memory = old = torch.cat([state[:n] for state, n in zip(past, sizes, strict=False)])
        for step in range(depth):
            rows = torch.cat(
                [
                    torch.arange(start, start + n)
                    for start, n in zip(starts[step:], sizes, strict=False)
                ]
            )
            old, memory = (
                memory,
                writes.rows(memory, rows.to(memory.device), max(widths[step : step + len(sizes)])),
            )
        states += memory.split(sizes)
        before += old.split(sizes)
    return torch.cat(states), torch.cat(before) if before else states[0][:0]


@torch.no_grad()
def growth(memory: Tensor, active: Sequence[int]) -> Tensor:
    """log2 of memory's root mean square after each write over that before it: [writes after the
    first of each conversation].

    memory: [rows, layers, slots, width], before each turn, in turn-major order. active: as in
    `ConversationBatch`.
    """
    size = memory.square().mean(dim=(1, 2, 3)).clamp(min=1e-30).log2() / 2
    turns = size.split(list(active))
    writes = [after - before[: len(after)] for before, after in itertools.pairwise(turns[1:])]
    return torch.cat(writes) if writes else size[:0]


def answer_logits(
    model: ReactiveTransformer,
    tokens: Tensor,
    memory: Tensor,
    mask: Tensor,
    routings: list[Routing] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits [answer tokens, vocabulary] and their targets [answer tokens], of the positions in
    `mask` [rows, tokens - 1] alone."""
    tokens, targets = tokens[:, :-1], tokens[:, 1:][mask]
    needed = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1).tolist()
    groups = by_width(
        [min(round_up(max(1, width), TOKENS), tokens.shape[1]) for width in needed], DECODE_CALL
    )
    if (
        len(groups) == 1 or model.config.experts
    ):  # what experts are balanced over is one batch of tokens
        hidden = model.decode_hidden(tokens, memory, routings)[mask]
        return exact(model.decoder.logits(hidden)), targets
    parts, places = [], []
    place = torch.arange(len(targets), device=mask.device).split(mask.sum(1).tolist())
    for rows in groups:
        width = max(needed[row] for row in rows)
        parts.append(model.decode_hidden(tokens[rows, :width], memory[rows])[mask[rows, :width]])
        places += [place[row] for row in rows]
    return exact(model.decoder.logits(torch.cat(parts)[torch.cat(places).argsort()])), targets
