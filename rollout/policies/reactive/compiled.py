"""The model as compiled kernels, for float32 on CPUs: what CUDA graphs are on a GPU, a step without
the cost of its calls.

They compute what `Decoder`, `Encoder` and `MemoryAttention` compute (common/models), from a copy of
their weights that is arranged for that (`products.pack`). No conversation is padded to the length
of another, and none's result depends on the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.models.kernels import layers
from common.models.kernels.layers import (
    AskingWeights,
    AttentionWeights,
    Cache,
    FeedForwardWeights,
    GateWeights,
    Places,
    SequenceWeights,
)
from common.models.kernels.products import Packed, pack
from common.models.kernels.sequences import Heads, Spans
from common.models.layers.attention import Attention
from common.models.layers.batch_invariant import ROWS, round_up
from common.models.layers.feed_forward import FeedForward
from common.models.layers.operations import RMSNorm
from common.models.reactive.decoder import Decoder, DecoderLayer
from common.models.reactive.encoder import EncoderLayer
from common.models.reactive.memory import MemoryLayer, ResidualGate
from common.models.reactive.model import ReactiveTransformer
from rollout.policies.reactive.cache import KeyValues


class CompiledDecoder:
    """For tokens of any rows at any positions, steps and prompts alike, without padding: each looks
    at its row's tokens up to its own, and at what its row remembers.

    past, memory: by dimension (`KeyValues`), one row each for what `rows` counts; `past` is
    written. Tokens given are a multiple of `ROWS` (common/models/layers/batch_invariant.py); those
    past len(rows) are computed along and see nothing.
    """

    def __init__(self, decoder: Decoder, past: KeyValues, memory: KeyValues, rope: Tensor):
        self._decoder, self._past, self._memory = decoder, past, memory
        self._rope = torch.view_as_real(rope).numpy()
        self._eps = np.float32(decoder.config.norm_eps)
        self.refresh()

    def refresh(self) -> None:
        """Take up the decoder's weights as they are now."""
        decoder = self._decoder
        self._layers = [
            _Layer(layer, self._past.layer(i), self._memory.layer(i))
            for i, layer in enumerate(decoder.layers)
        ]
        last = decoder.layers[-1]
        assert isinstance(last, DecoderLayer)
        self._keeping = (
            _copy(last.attention_norm.weight),
            pack(_array(last.attention.key_value_weight)),
        )
        self._head_norm, self._head = _copy(decoder.head_norm.weight), _pack(decoder.head)

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
            self._past.layer(len(self._layers) - 1),
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
            _copy(layer.attention_norm.weight), pack(_array(own.input.weight)), _pack(own.output)
        )
        self._cross = AttentionWeights(
            _copy(layer.cross_norm.weight), pack(_array(cross.query_weight)), _pack(cross.output)
        )
        self._reading = _copy(layer.memory_norm.weight), pack(_array(cross.key_value_weight))
        self._past, self._memory = past, memory
        self._eps = np.float32(layer.attention_norm.eps)
        self._module = layer
        self._feed_forward: FeedForwardWeights | None = None
        if isinstance(layer.feed_forward, FeedForward):
            self._feed_forward = _feed_forward(layer.feed_forward_norm, layer.feed_forward)

    def read_memory(self, memories: np.ndarray, layer: int, rows: np.ndarray) -> None:
        layers.read_memory(memories, layer, *self._reading, self._eps, rows, self._memory)

    def attend(self, x: Tensor, places: Places) -> None:
        layers.attend(
            x.numpy(), self._own, self._past, self._cross, self._memory, self._eps, places
        )

    def feed_forward(self, x: Tensor) -> None:
        if self._feed_forward is not None:
            layers.feed_forward(x.numpy(), self._feed_forward, self._eps)
        else:
            # Which experts a token takes is for the module to say.
            x += self._module.feed_forward(self._module.feed_forward_norm(x))


WRITE_ROWS = 16
"""Interactions that are written at once: more have no room in a core's own cache."""


class CompiledMemory:
    """The encoder and the memory attention."""

    def __init__(self, model: ReactiveTransformer, rope: Tensor):
        self._model = model
        self._rope = torch.view_as_real(rope).numpy()
        self.refresh()

    def refresh(self) -> None:
        """Take up the model's weights as they are now."""
        model = self._model
        self._layers = [
            _MemoryLayer(*pair, self._rope)
            for pair in zip(model.encoder.layers, model.memory_attention.layers, strict=True)
        ]
        attention = model.memory_attention
        self._mean_norm = _copy(attention.mean_norm.weight) if attention.reads_mean else None
        self._eps = np.float32(model.config.norm_eps)

    def write(self, memories: Tensor, interactions: Sequence[Sequence[int]]) -> Tensor:
        """Memories [batch, layers, slots, width] after each was written with one interaction (ids).

        Raises ValueError where there are not as many interactions as memories, or one is empty or
        too long.
        """
        lengths = [len(each) for each in interactions]
        if len(lengths) != len(memories) or not all(
            0 < length <= len(self._rope) for length in lengths
        ):
            raise ValueError(
                f"{len(memories)} memories cannot be written with interactions of {lengths} "
                f"tokens: at most {len(self._rope)}"
            )
        memories = memories.contiguous()
        after = torch.empty_like(memories)
        for first in range(0, len(memories), WRITE_ROWS):
            some = slice(first, first + WRITE_ROWS)
            self._write(memories[some].numpy(), interactions[some], after[some].numpy())
        return after

    def _write(
        self, before: np.ndarray, interactions: Sequence[Sequence[int]], after: np.ndarray
    ) -> None:
        tokens = _spans([len(each) for each in interactions])
        ids = [token for each in interactions for token in each]
        # Attention goes by four rows, and so past the end of a sequence.
        x = self._model.embedding(
            torch.tensor(ids + [0] * (round_up(len(ids) + 3, ROWS) - len(ids)))
        ).numpy()
        batch, _, slots, width = before.shape
        means = np.zeros(
            (batch if self._mean_norm is not None else 0, round_up(slots, 4), width), np.float32
        )
        if self._mean_norm is not None:
            layers.mean_memories(before, self._mean_norm, self._eps, means)
        for i, layer in enumerate(self._layers):
            layer.encode(x, tokens)
            layer.write(i, before, after, means, x, tokens)


_SEEING = {
    "simple": layers.NOTHING,
    "self": layers.SLOTS,
    "interlayer": layers.MEAN,
    "gated_self_interlayer": layers.MIXTURE,
}


class _MemoryLayer:
    """Of both. Arrays are [rows, width]."""

    def __init__(self, encoder: nn.Module, memory: nn.Module, rope: np.ndarray):
        assert isinstance(encoder, EncoderLayer)
        assert isinstance(memory, MemoryLayer)
        self._rope, self._seeing = rope, _SEEING[memory.kind]
        self._encoding = *_sequences(encoder.attention), _copy(encoder.attention_norm.weight)
        self._feed_forward = _feed_forward(encoder.feed_forward_norm, encoder.feed_forward)
        self._eps = np.float32(encoder.feed_forward_norm.eps)
        of_tokens, self._heads = _asking(memory.memory_norm, memory.attention, memory.gate)
        self._of_tokens = _copy(memory.encoded_norm.weight), of_tokens
        # Kernels are compiled for all of it, whether slots look at anything or not.
        self._of_slots, self._mixture = of_tokens, of_tokens.gate
        if self._seeing != layers.NOTHING:
            self._of_slots, _ = _asking(memory.slot_norm, memory.slot_attention, memory.slot_gate)
        if self._seeing == layers.MIXTURE:
            self._mixture = _gate(memory.mixture_gate)

    def encode(self, x: np.ndarray, tokens: Spans) -> None:
        """x in place."""
        layers.encode(x, tokens, self._rope, *self._encoding, self._eps)
        layers.feed_forward(x, self._feed_forward, self._eps)

    def write(
        self,
        layer: int,
        before: np.ndarray,
        after: np.ndarray,
        means: np.ndarray,
        encoded: np.ndarray,
        tokens: Spans,
    ) -> None:
        """As `MemoryLayer.forward`, of this layer of all memories."""
        of_slots = self._seeing, means, self._mixture, self._of_slots
        layers.write(
            before,
            after,
            layer,
            *of_slots,
            encoded,
            tokens,
            self._rope,
            *self._of_tokens,
            self._heads,
            self._eps,
        )


def _asking(norm: RMSNorm, attention: Attention, gate: ResidualGate) -> tuple[AskingWeights, Heads]:
    weights, heads = _sequences(attention)
    return AskingWeights(_copy(norm.weight), weights, _gate(gate)), heads


def _sequences(attention: Attention) -> tuple[SequenceWeights, Heads]:
    queries, keys_values = (
        pack(_array(attention.query_weight)),
        pack(_array(attention.key_value_weight)),
    )
    heads = Heads(attention.query_heads, attention.kv_heads, attention.head_dim)
    return SequenceWeights(queries, keys_values, _pack(attention.output)), heads


def _gate(gate: ResidualGate) -> GateWeights:
    """Every kind is a linear map of the statuses, or of none of them, and no gate is one that is
    always half open, times two."""
    slots = gate.slots
    if gate.kind == "linear":
        weight, bias = _copy(gate.linear.weight), _copy(gate.linear.bias)
    elif gate.kind == "elementwise":
        assert isinstance(gate.weight, Tensor)
        own = _copy(gate.weight)
        weight = (
            np.diag(own)
            if gate.per_slot
            else np.repeat(own[:, None] / np.float32(slots), slots, axis=1)
        )
        bias = np.zeros_like(own)
    else:
        bias = np.zeros(1, np.float32)
        if gate.kind == "static":
            assert isinstance(gate.weight, Tensor)
            bias = _copy(gate.weight)
        weight = np.zeros((len(bias), 0), np.float32)
    doubled = gate.kind == "none" or gate.activation == "tanh"
    return GateWeights(weight, bias, np.float32(2 if doubled else 1))


def _feed_forward(norm: RMSNorm, layer: FeedForward) -> FeedForwardWeights:
    return FeedForwardWeights(_copy(norm.weight), _pack(layer.up), _pack(layer.down))


def _spans(lengths: Sequence[int]) -> Spans:
    stops = np.cumsum(lengths)
    return Spans(stops - lengths, stops)


def _pack(linear: nn.Linear) -> Packed:
    return pack(_array(linear.weight), _array(linear.bias))


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().numpy()


def _copy(parameter: Tensor) -> np.ndarray:
    return _array(parameter).copy()
