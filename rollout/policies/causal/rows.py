"""Rows of a batch that decode together, each with keys and values of its own in one cache.

All rows end in the same column: a row of n tokens fills the last n columns, and what lies before
them is masked. So a step is one forward pass of one token per row, whatever their lengths, and rows
come and go between two steps. Prompts are read with padding behind them, which a causal model
cannot see, so no position of a row is ever computed without anything to look at.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from common.data.bucketing import by_width
from common.data.padding import pad

SLACK = 32
"""Columns that a cache has beyond the tokens in it, so that most steps move nothing."""
CALL_COST = 64
"""Tokens that a forward pass of prompts costs beside its tokens."""


class _Layer(DynamicLayer):
    """Keys and values [rows, heads, columns, features] of one layer in a buffer with room behind
    them."""

    def __init__(self, keys: Tensor, values: Tensor, filled: int):
        super().__init__()
        self._keys, self._values, self._filled = keys, values, filled
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (
            buffer[:, :, : self._filled] for buffer in (self._keys, self._values)
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        start, self._filled = self._filled, self._filled + key_states.shape[-2]
        if self._filled > self._keys.shape[-2]:
            self._keys, self._values = (_longer(x) for x in (self._keys, self._values))
        self._keys[:, :, start : self._filled] = key_states
        self._values[:, :, start : self._filled] = value_states
        self._show()
        return self._keys[:, :, : self._filled], self._values[:, :, : self._filled]


def _longer(buffer: Tensor) -> Tensor:
    rows, heads, columns, features = buffer.shape
    grown = buffer.new_zeros(rows, heads, columns + SLACK, features)
    grown[:, :, :columns] = buffer
    return grown


class Rows:
    """model: a causal language model of `transformers`, in evaluation mode on `device`.
    max_tokens: its longest sequence."""

    def __init__(self, model: Any, device: torch.device, max_tokens: int):
        self._model, self._device, self._max_tokens = model, device, max_tokens
        takes = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in takes
        self._cache: Any = DynamicCache()
        self._lengths: list[int] = []
        """Tokens in the cache, of each row."""

    def __len__(self) -> int:
        return len(self._lengths)

    @torch.inference_mode()
    def change(self, kept: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Rows `kept` stay, in this order, and a row for each prompt comes after them. All tokens
        of a prompt are read but the last, which is left to the first step."""
        read = [prompt[:-1] for prompt in prompts]
        lengths = [*(self._lengths[row] for row in kept), *map(len, read)]
        columns = max(lengths, default=0)
        fresh = self._read(read)
        old = self._cache.layers if kept else []
        layers = []
        for index in range(max(len(old), len(fresh))):
            like = old[index].keys if old else fresh[index][0]
            values_like = old[index].values if old else fresh[index][1]
            buffers = [
                x.new_zeros(len(lengths), x.shape[1], columns + SLACK, x.shape[3])
                for x in (like, values_like)
            ]
            for place, row in enumerate(kept):
                n = self._lengths[row]
                for buffer, source in zip(
                    buffers, (old[index].keys, old[index].values), strict=True
                ):
                    buffer[place, :, columns - n : columns] = source[row, :, source.shape[2] - n :]
            for place, ids in enumerate(read, len(kept)):
                for buffer, source in zip(buffers, fresh[index], strict=True):
                    n = len(ids)
                    buffer[place, :, columns - n : columns] = source[place - len(kept), :, :n]
            layers.append(_Layer(buffers[0], buffers[1], columns))
        self._cache, self._lengths = DynamicCache(), lengths
        self._cache.layers = layers

    def _read(self, prompts: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of prompts by layer, [prompts, heads, longest, features], each from
        column 0 on; empty where there is no prompt."""
        if not prompts:
            return []
        widths = [max(1, len(prompt)) for prompt in prompts]
        found: list[tuple[Tensor, Tensor]] = []
        for group in by_width(widths, CALL_COST):
            # An empty prompt is read as one token that nobody looks at.
            tokens, _ = pad([prompts[i] or [0] for i in group])
            cache: Any = DynamicCache()
            self._model.base_model(
                input_ids=tokens.to(self._device), past_key_values=cache, use_cache=True
            )
            if not found:
                found = [
                    (
                        layer.keys.new_zeros(len(prompts), *self._shape(layer.keys, widths)),
                        layer.values.new_zeros(len(prompts), *self._shape(layer.values, widths)),
                    )
                    for layer in cache.layers
                ]
            index = torch.tensor(group, device=self._device)
            for (keys, values), layer in zip(found, cache.layers, strict=True):
                keys[index, :, : layer.keys.shape[2]] = layer.keys
                values[index, :, : layer.values.shape[2]] = layer.values
        return found

    @staticmethod
    def _shape(states: Tensor, widths: Sequence[int]) -> tuple[int, int, int]:
        return states.shape[1], max(widths), states.shape[3]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """One more token for every row → logits of the next, float32 [rows, vocabulary]."""
        columns = self._cache.get_seq_length() + 1
        lengths = torch.tensor(self._lengths, device=self._device)
        mask = torch.arange(columns, device=self._device) >= columns - 1 - lengths[:, None]
        given: dict[str, Any] = {}
        if self._takes_positions:
            # A row whose answer is complete may be computed along past the last position.
            given["position_ids"] = lengths.clamp(max=self._max_tokens - 1)[:, None]
        output = self._model(
            input_ids=torch.tensor(tokens, device=self._device)[:, None],
            attention_mask=mask.long(),
            past_key_values=self._cache,
            use_cache=True,
            **given,
        )
        self._lengths = [length + 1 for length in self._lengths]
        logits: Tensor = output.logits[:, -1].float()
        return logits
