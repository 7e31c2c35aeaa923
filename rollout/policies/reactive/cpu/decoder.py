"""The decoder as kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from common.models.layers.feed_forward import FeedForward
from common.models.reactive.decoder import Decoder, DecoderLayer
from rollout.policies.reactive.cpu import layers
from rollout.policies.reactive.cpu.layers import (
    AttentionWeights,
    Cache,
    FeedForwardWeights,
    Places,
)
from rollout.policies.reactive.cpu.weights import (
    copy_of,
    pack_feed_forward,
    pack_linear,
    pack_self_attention,
    pairs_of,
)


class CompiledDecoder:
    """For tokens of any rows at any positions, steps and prompts alike, without padding: each looks
    at its row's tokens up to its own, and at what its row remembers.

    past, memory: one cache for each layer, with the rows that `rows` counts; `past` is written.
    Tokens given are a multiple of `ROWS` (common/models/layers/batch_invariant.py); those
    past len(rows) are computed along and see nothing.
    """

    def __init__(
        self, decoder: Decoder, past: Sequence[Cache], memory: Sequence[Cache], rope: Tensor
    ):
        self._decoder, self._past, self._memory = decoder, past, memory
        self._rope = pairs_of(rope)
        self._eps = np.float32(decoder.config.norm_eps)
        self.refresh()

    def refresh(self) -> None:
        """Take up the decoder's weights as they are now."""
        decoder = self._decoder
        self._layers = [
            _Layer(layer, self._past[i], self._memory[i]) for i, layer in enumerate(decoder.layers)
        ]
        last = decoder.layers[-1]
        assert isinstance(last, DecoderLayer)
        self._keeping = (
            copy_of(last.attention_norm.weight),
            pack_self_attention(last.attention)[1],
        )
        self._head_norm, self._head = copy_of(decoder.head_norm.weight), pack_linear(decoder.head)

    def hidden(self, embedded: Tensor, rows: np.ndarray, positions: np.ndarray) -> Tensor:
        """embedded [tokens, width] → hidden states of the same shape, in its place. rows,
        positions: int64 [at most tokens]."""
        places = Places(self._rope, rows, positions)
        for layer in self._layers:
            layer.attend(embedded, places)
            layer.feed_forward(embedded)
        return embedded

    def fill(self, embedded: Tensor, rows: np.ndarray, positions: np.ndarray) -> None:
        """As `hidden`, for the keys and values that it leaves: of the last layer nothing else is
        computed."""
        places = Places(self._rope, rows, positions)
        for layer in self._layers[:-1]:
            layer.attend(embedded, places)
            layer.feed_forward(embedded)
        layers.keep_past(
            embedded.numpy(),
            *self._keeping,
            self._past[-1],
            self._eps,
            places,
        )

    def read_memory(self, memories: Tensor, rows: np.ndarray) -> None:
        """Put into these rows of `memory` what the decoder sees of memories [rows, layers, slots,
        width]."""
        seen = memories.contiguous().numpy()
        for i, layer in enumerate(self._layers):
            layer.read_memory(seen, i, rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, width] → [tokens, vocabulary]."""
        out = hidden.new_empty(len(hidden), len(self._head.bias))
        layers.logits(hidden.numpy(), self._head_norm, self._head, self._eps, out.numpy())
        return out[:, : self._decoder.config.vocab_size]


class _Layer:
    def __init__(self, layer: nn.Module, past: Cache, memory: Cache):
        assert isinstance(layer, DecoderLayer)
        own, cross = layer.attention, layer.cross_attention
        self._own = AttentionWeights(
            copy_of(layer.attention_norm.weight),
            pack_linear(own.input),
            pack_linear(own.output),
        )
        self._cross = AttentionWeights(
            copy_of(layer.cross_norm.weight),
            pack_linear(cross.query),
            pack_linear(cross.output),
        )
        self._second: AttentionWeights | None = None
        if layer.reads_again:
            self._second = AttentionWeights(
                copy_of(layer.second_norm.weight),
                pack_linear(layer.second_attention.query),
                pack_linear(layer.second_attention.output),
            )
        self._reading = copy_of(layer.memory_norm.weight), pack_linear(cross.key_value)
        self._past, self._memory = past, memory
        self._eps = np.float32(layer.attention_norm.eps)
        self._module = layer
        self._feed_forward: FeedForwardWeights | None = None
        if isinstance(layer.feed_forward, FeedForward):
            self._feed_forward = pack_feed_forward(layer.feed_forward_norm, layer.feed_forward)

    def read_memory(self, memories: np.ndarray, layer: int, rows: np.ndarray) -> None:
        layers.read_memory(memories, layer, *self._reading, self._eps, rows, self._memory)

    def attend(self, x: Tensor, places: Places) -> None:
        layers.attend(
            x.numpy(), self._own, self._past, self._cross, self._memory, self._eps, places
        )
        if self._second is not None:
            layers.read(x.numpy(), self._second, self._memory, self._eps, places)

    def feed_forward(self, x: Tensor) -> None:
        if self._feed_forward is not None:
            layers.feed_forward(x.numpy(), self._feed_forward, self._eps)
        else:
            # Which experts a token takes is for the module to say.
            x += self._module.feed_forward(self._module.feed_forward_norm(x))
