"""Backend `torch`: the model as it stands in `common/models`, on any device and in any type."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from common.data.bucketing import by_width
from common.data.padding import pad
from common.models.layers.batch_invariant import ROWS, TOKENS, round_up
from common.models.reactive.model import ReactiveTransformer
from rollout.policies.reactive.cache import KeyValues, Prefill, Reach, Step

WRITE_ROWS = 16
"""Interactions written at once on a CPU: more have no room in a core's own cache."""
WRITE_CALL = 512
"""Tokens of padding that cost as much as one more call. Padding takes part in attention and in what
memory reads, not in the encoder."""


class TorchBackend:
    """See `backend.Backend`."""

    name = "torch"

    def __init__(self, model: ReactiveTransformer, slots: int, device: torch.device):
        config, dtype = model.config, model.dtype
        self._model, self._device = model, device
        self._rope = model.decoder.rope(device)
        self.rows = self.height(slots)
        read_heads = config.cross_kv_heads or config.kv_heads
        self._past, self._read = (
            KeyValues((config.layers, self.rows, heads, positions, config.head_dim), device, dtype)
            for heads, positions in (
                (config.kv_heads, config.positions),
                (read_heads, config.slots),
            )
        )

    def height(self, rows: int) -> int:
        """Rows that are computed for so many in use: products of few rows round otherwise, so up
        to `ROWS` - 1 unused ones are computed along."""
        return round_up(rows, ROWS)

    def refresh(self) -> None:
        """The model's weights are used where they are."""

    def reach(self, active: int, longest: int) -> Reach:
        positions = min(round_up(longest, TOKENS), self._model.config.positions)
        return Reach(min(self.height(active), self.rows), positions)

    def run(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        return compute()

    def read_memory(self, rows: Sequence[int], memories: Tensor) -> None:
        index = torch.tensor(rows, device=self._device)
        keys, values = self._model.decoder.read_memory(memories)
        self._read.keys.index_copy_(1, index, keys)
        self._read.values.index_copy_(1, index, values)

    def fill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        if not any(prompts):
            return
        index, tokens = torch.tensor(rows, device=self._device), self._padded(prompts)[0]
        context = Prefill(self._past, self._read, index, self._rope[: tokens.shape[1]])
        self._model.decoder.fill(self._model.embedding(tokens), context)

    def logits(self, tokens: Tensor, positions: Tensor, reach: Reach) -> Tensor:
        context = Step(self._past, self._read, self._rope, positions, reach)
        hidden = self._model.decoder(self._model.embedding(tokens)[:, None], context)
        return self._model.decoder.logits(hidden[:, 0])

    def write(self, memories: Tensor, interactions: Sequence[Sequence[int]]) -> Tensor:
        if self._device.type != "cpu":
            return self._write(memories, interactions)
        widths = [round_up(len(each), TOKENS) for each in interactions]
        after = torch.empty_like(memories)
        for part in by_width(widths, WRITE_CALL):
            for first in range(0, len(part), WRITE_ROWS):
                some = part[first : first + WRITE_ROWS]
                after[some] = self._write(memories[some], [interactions[i] for i in some])
        return after

    def _write(self, memories: Tensor, interactions: Sequence[Sequence[int]]) -> Tensor:
        tokens, mask = self._padded(interactions)
        return self._model.remember(memories, self._model.encode(tokens, mask), mask)

    def move(self, source: int, target: int, positions: int) -> None:
        self._past.move(source, target, positions)
        self._read.move(source, target, self._model.config.slots)

    def clear(self, row: int) -> None:
        self._past.clear(row)
        self._read.clear(row)

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Tokens and their mask, padded to a multiple of `TOKENS`."""
        tokens, mask = pad(sequences)
        extra = (0, -tokens.shape[1] % TOKENS)
        return F.pad(tokens, extra).to(self._device), F.pad(mask, extra).to(self._device)
