"""The model as compiled kernels, for float32 on CPUs: what CUDA graphs are on a GPU, a step without the cost of its calls.

They compute what `Decoder`, `Encoder` and `MemoryAttention` compute (common/models), from a copy of their weights that is arranged for that
(`products.pack`). No conversation is padded to the length of another, and none's result depends on the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.models.attention import Attention
from common.models.decoder import Decoder, DecoderLayer
from common.models.encoder import EncoderLayer
from common.models.feed_forward import FeedForward
from common.models.kernels import elementary, layers
from common.models.kernels.attention import Heads, Spans
from common.models.kernels.layers import AttentionWeights, Cache, FeedForwardWeights, GateWeights, Places, SequenceWeights
from common.models.kernels.products import Packed, pack
from common.models.memory import MemoryLayer, ResidualGate
from common.models.operations import RMSNorm
from common.models.reactive import ReactiveTransformer
from common.models.rows import ROWS, round_up
from rollout.policies.cache import KeyValues


class CompiledDecoder:
    """For tokens of any rows at any positions, steps and prompts alike, without padding: each looks at its row's tokens up to its own,
    and at what its row remembers.

    past, memory: by dimension (`KeyValues`), one row each for what `rows` counts; `past` is written. Tokens given are a multiple of `ROWS`
    (common/models/rows.py); those past len(rows) are computed along and see nothing.
    """

    def __init__(self, decoder: Decoder, past: KeyValues, memory: KeyValues, rope: Tensor):
        self._decoder, self._past, self._memory = decoder, past, memory
        self._rope = torch.view_as_real(rope).numpy()
        self._eps = np.float32(decoder.config.norm_eps)
        self.refresh()

    def refresh(self) -> None:
        """Take up the decoder's weights as they are now."""
        decoder = self._decoder
        self._layers = [_Layer(layer, self._past.layer(i), self._memory.layer(i)) for i, layer in enumerate(decoder.layers)]
        last = decoder.layers[-1]
        assert isinstance(last, DecoderLayer)
        self._keeping = _copy(last.attention_norm.weight), pack(_array(last.attention.key_value_weight))
        self._head_norm, self._head = _copy(decoder.head_norm.weight), _pack(decoder.head)

    def hidden(self, embedded: Tensor, rows: np.ndarray, positions: np.ndarray) -> Tensor:
        """embedded [tokens, width] → hidden states of the same shape, in its place. rows, positions: int64 [at most tokens]."""
        places = Places(self._rope, rows, positions)
        for layer in self._layers:
            layer.attend(embedded, places)
            layer.feed_forward(embedded)
        return embedded

    def fill(self, embedded: Tensor, rows: np.ndarray, positions: np.ndarray) -> None:
        """As `hidden`, for the keys and values that it leaves: of the last layer nothing else is computed."""
        places = Places(self._rope, rows, positions)
        for layer in self._layers[:-1]:
            layer.attend(embedded, places)
            layer.feed_forward(embedded)
        layers.keep_past(embedded.numpy(), *self._keeping, self._past.layer(len(self._layers) - 1), self._eps, places)

    def read_memory(self, memories: Tensor, rows: np.ndarray) -> None:
        """Put into these rows of `memory` what the decoder sees of memories [rows, layers, slots, width]."""
        for i, layer in enumerate(self._layers):
            layer.read_memory(_rows(memories.numpy()[:, i]), rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, width] → [tokens, vocabulary]."""
        out = hidden.new_empty(len(hidden), len(self._head.bias))
        layers.logits(hidden.numpy(), self._head_norm, self._head, self._eps, out.numpy())
        return out[:, : self._decoder.config.vocab_size]


class _Layer:
    def __init__(self, layer: nn.Module, past: Cache, memory: Cache):
        assert isinstance(layer, DecoderLayer)
        own, cross = layer.attention, layer.cross_attention
        self._own = AttentionWeights(_copy(layer.attention_norm.weight), pack(_array(own.input.weight)), _pack(own.output))
        self._cross = AttentionWeights(_copy(layer.cross_norm.weight), pack(_array(cross.query_weight)), _pack(cross.output))
        self._reading = _copy(layer.memory_norm.weight), pack(_array(cross.key_value_weight))
        self._past, self._memory = past, memory
        self._eps = np.float32(layer.attention_norm.eps)
        self._module = layer
        self._feed_forward: FeedForwardWeights | None = None
        if isinstance(layer.feed_forward, FeedForward):
            self._feed_forward = _feed_forward(layer.feed_forward_norm, layer.feed_forward)

    def read_memory(self, slots: np.ndarray, rows: np.ndarray) -> None:
        layers.read_memory(slots, *self._reading, self._eps, rows, self._memory)

    def attend(self, x: Tensor, places: Places) -> None:
        layers.attend(x.numpy(), self._own, self._past, self._cross, self._memory, self._eps, places)

    def feed_forward(self, x: Tensor) -> None:
        if self._feed_forward is not None:
            layers.feed_forward(x.numpy(), self._feed_forward, self._eps)
        else:
            # Which experts a token takes is for the module to say.
            x += self._module.feed_forward(self._module.feed_forward_norm(x))


class CompiledMemory:
    """The encoder and the memory attention."""

    def __init__(self, model: ReactiveTransformer, rope: Tensor):
        self._model = model
        self._rope = torch.view_as_real(rope).numpy()
        self.refresh()

    def refresh(self) -> None:
        """Take up the model's weights as they are now."""
        model = self._model
        self._layers = [_MemoryLayer(*pair, self._rope) for pair in zip(model.encoder.layers, model.memory_attention.layers, strict=True)]
        self._mean_norm = _norm(model.memory_attention.mean_norm) if model.memory_attention.reads_mean else None

    def write(self, memories: Tensor, interactions: Sequence[Sequence[int]]) -> Tensor:
        """Memories [batch, layers, slots, width] after each was written with one interaction (ids).

        Raises ValueError where there are not as many interactions as memories, or one is empty or too long.
        """
        lengths = [len(each) for each in interactions]
        if len(lengths) != len(memories) or not all(0 < length <= len(self._rope) for length in lengths):
            raise ValueError(f"{len(memories)} memories cannot be written with interactions of {lengths} tokens: at most {len(self._rope)}")
        ids = [token for each in interactions for token in each]
        x = self._model.embedding(torch.tensor(ids + [0] * (-len(ids) % ROWS))).numpy()
        before, (batch, _, slots, width) = memories.numpy(), memories.shape
        mean = _normed(_rows(before.mean(axis=1)), *self._mean_norm) if self._mean_norm is not None else None
        tokens, places = _spans(lengths), _spans([slots] * batch)
        after = torch.empty_like(memories)
        for i, layer in enumerate(self._layers):
            layer.encode(x, tokens)
            written = layer.write(_rows(before[:, i]), mean, places, x, tokens)
            after.numpy()[:, i] = written[: batch * slots].reshape(batch, slots, width)
        return after


class _MemoryLayer:
    """Of both. Arrays are [rows, width]."""

    def __init__(self, encoder: nn.Module, memory: nn.Module, rope: np.ndarray):
        assert isinstance(encoder, EncoderLayer)
        assert isinstance(memory, MemoryLayer)
        self._kind, self._rope = memory.kind, rope
        self._encoding = *_sequences(encoder.attention), *_norm(encoder.attention_norm)
        self._feed_forward = _feed_forward(encoder.feed_forward_norm, encoder.feed_forward)
        self._eps = np.float32(encoder.feed_forward_norm.eps)
        self._memory_norm, self._encoded_norm = _norm(memory.memory_norm), _norm(memory.encoded_norm)
        self._asking_tokens = *_sequences(memory.attention), _gate(memory.gate)
        if self._kind != "simple":
            self._slot_norm = _norm(memory.slot_norm)
            self._asking_slots = *_sequences(memory.slot_attention), _gate(memory.slot_gate)
        if self._kind == "gated_self_interlayer":
            self._mixture = _gate(memory.mixture_gate)

    def encode(self, x: np.ndarray, tokens: Spans) -> None:
        """x in place."""
        layers.encode(x, tokens, self._rope, *self._encoding)
        layers.feed_forward(x, self._feed_forward, self._eps)

    def write(self, slots: np.ndarray, mean: np.ndarray | None, places: Spans, encoded: np.ndarray, tokens: Spans) -> np.ndarray:
        """slots, of which `places` are memories, in place. As `MemoryLayer.forward`."""
        if self._kind != "simple":
            normed = _normed(slots, *self._slot_norm)
            seen = normed if mean is None else mean
            if mean is not None and self._kind == "gated_self_interlayer":
                seen = np.zeros_like(normed)
                layers.gate(normed, mean, places, self._mixture, seen)
            layers.ask(slots, normed, places, seen, places, self._rope[:0], *self._asking_slots)
        asking, answers = _normed(slots, *self._memory_norm), _normed(encoded, *self._encoded_norm)
        layers.ask(slots, asking, places, answers, tokens, self._rope, *self._asking_tokens)
        return slots


def _sequences(attention: Attention) -> tuple[SequenceWeights, Heads]:
    queries, keys_values = pack(_array(attention.query_weight)), pack(_array(attention.key_value_weight))
    heads = Heads(attention.query_heads, attention.kv_heads, attention.head_dim)
    return SequenceWeights(queries, keys_values, _pack(attention.output)), heads


def _gate(gate: ResidualGate) -> GateWeights:
    """Every kind is a linear map of the statuses, or of none of them, and no gate is one that is always half open, times two."""
    slots = gate.slots
    if gate.kind == "linear":
        weight, bias = _copy(gate.linear.weight), _copy(gate.linear.bias)
    elif gate.kind == "elementwise":
        assert isinstance(gate.weight, Tensor)
        own = _copy(gate.weight)
        weight = np.diag(own) if gate.per_slot else np.repeat(own[:, None] / np.float32(slots), slots, axis=1)
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


def _rows(x: np.ndarray) -> np.ndarray:
    """A copy of x [batch, slots, width] as [batch · slots, width], and zeros up to a multiple of `ROWS`."""
    batch, slots, width = x.shape
    rows = np.zeros((round_up(batch * slots, ROWS), width), np.float32)
    rows[: batch * slots] = x.reshape(-1, width)
    return rows


def _norm(norm: RMSNorm) -> tuple[np.ndarray, np.float32]:
    return _copy(norm.weight), np.float32(norm.eps)


def _normed(x: np.ndarray, weight: np.ndarray, eps: np.float32) -> np.ndarray:
    out = np.empty_like(x)
    elementary.rms_norm(x, weight, eps, out)
    return out


def _spans(lengths: Sequence[int]) -> Spans:
    stops = np.cumsum(lengths)
    return Spans(stops - lengths, stops)


def _pack(linear: nn.Linear) -> Packed:
    return pack(_array(linear.weight), _array(linear.bias))


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().numpy()


def _copy(parameter: Tensor) -> np.ndarray:
    return _array(parameter).copy()
