"""The encoder and the memory attention as kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.models.layers.attention import Attention, CrossAttention
from common.models.layers.batch_invariant import ROWS, round_up
from common.models.reactive.encoder import EncoderLayer
from common.models.reactive.memory import MemoryLayer, ResidualGate
from common.models.reactive.model import ReactiveTransformer
from rollout.policies.reactive.cpu import layers
from rollout.policies.reactive.cpu.gates import GateWeights
from rollout.policies.reactive.cpu.layers import (
    AskingWeights,
    MemoryWeights,
    SequenceWeights,
)
from rollout.policies.reactive.cpu.products import pack
from rollout.policies.reactive.cpu.sequences import Heads, Spans
from rollout.policies.reactive.cpu.weights import (
    copy_of,
    pack_feed_forward,
    pack_linear,
    pack_self_attention,
    pairs_of,
)

WRITE_ROWS = 16
"""Interactions that are written at once: more have no room in a core's own cache."""


class CompiledMemory:
    """The encoder and the memory attention."""

    def __init__(self, model: ReactiveTransformer, rope: Tensor):
        self._model = model
        self._rope = pairs_of(rope)
        self.refresh()

    def refresh(self) -> None:
        """Take up the model's weights as they are now."""
        model, attention = self._model, self._model.memory_attention
        # Without a memory attention (`last_interaction`) it has no layers.
        writing = attention.layers or [None] * len(model.encoder.layers)
        self._layers = [
            _MemoryLayer(*pair, self._rope)
            for pair in zip(model.encoder.layers, writing, strict=True)
        ]
        self._mean_norm = copy_of(attention.mean_norm.weight) if attention.reads_mean else None
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
    """A layer of the encoder and of the memory attention, where there is one. Arrays are [rows,
    width]."""

    def __init__(self, encoder: nn.Module, memory: nn.Module | None, rope: np.ndarray):
        assert isinstance(encoder, EncoderLayer)
        self._rope = rope
        own = encoder.attention
        weights = SequenceWeights(*pack_self_attention(own), pack_linear(own.output))
        self._encoding = weights, _heads(own), copy_of(encoder.attention_norm.weight)
        self._feed_forward = pack_feed_forward(encoder.feed_forward_norm, encoder.feed_forward)
        self._eps = np.float32(encoder.feed_forward_norm.eps)
        self._writing = None if memory is None else self._pack_writing(memory)

    def _pack_writing(self, memory: nn.Module) -> MemoryWeights:
        assert isinstance(memory, MemoryLayer)
        of_tokens, memory_heads = _asking(memory.memory_norm, memory.attention, memory.gate)
        seeing = _SEEING[memory.kind]
        # Kernels are compiled for all weights, whether slots look at anything or not.
        of_slots, mixture = of_tokens, of_tokens.gate
        if seeing != layers.NOTHING:
            of_slots, _ = _asking(memory.slot_norm, memory.slot_attention, memory.slot_gate)
        if seeing == layers.MIXTURE:
            mixture = _gate(memory.mixture_gate)
        encoded_norm = copy_of(memory.encoded_norm.weight)
        return MemoryWeights(
            seeing, mixture, of_slots, encoded_norm, of_tokens, memory_heads, self._eps
        )

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
        if self._writing is None:
            for number, (start, stop) in enumerate(zip(*tokens, strict=True)):
                after[number, layer] = _pooled(encoded[start:stop], after.shape[2])
            return
        layers.write(before, after, layer, means, encoded, tokens, self._rope, self._writing)


def _asking(
    norm: nn.RMSNorm, attention: CrossAttention, gate: ResidualGate
) -> tuple[AskingWeights, Heads]:
    parts = attention.query, attention.key_value, attention.output
    weights = SequenceWeights(*map(pack_linear, parts))
    return AskingWeights(copy_of(norm.weight), weights, _gate(gate)), _heads(attention)


def _heads(attention: Attention) -> Heads:
    return Heads(attention.query_heads, attention.kv_heads, attention.head_dim)


def _gate(gate: ResidualGate) -> GateWeights:
    """Every kind but delta and the one per number is a linear map of the statuses, or of none of
    them, and no gate is one that is always half open, times two."""
    slots = gate.slots
    contents = pack(np.zeros((0, 0), np.float32))
    if gate.kind == "linear":
        weight, bias = copy_of(gate.linear.weight), copy_of(gate.linear.bias)
    elif gate.kind == "elementwise":
        assert isinstance(gate.weight, Tensor)
        own = copy_of(gate.weight)
        weight = (
            np.diag(own)
            if gate.per_slot
            else np.repeat(own[:, None] / np.float32(slots), slots, axis=1)
        )
        bias = np.zeros_like(own)
    else:
        bias = np.zeros(1, np.float32)
        if gate.kind in ("per_number", "delta"):
            contents = pack_linear(gate.linear)
        if gate.kind == "static":
            assert isinstance(gate.weight, Tensor)
            bias = copy_of(gate.weight)
        weight = np.zeros((len(bias), 0), np.float32)
    doubled = gate.kind == "none" or gate.activation == "tanh"
    most = np.float32(2 if doubled else 1)
    heads, eps = (gate.parts[0], gate.eps) if gate.kind == "delta" else (0, 0.0)
    return GateWeights(
        weight, bias, contents, heads, np.float32(eps), most, np.float32(gate.stretch)
    )


def _pooled(encoded: np.ndarray, slots: int) -> np.ndarray:
    """As `as_memory`, of one interaction: [tokens, width] → [slots, width]."""
    slot = np.arange(slots)
    starts, ends = slot * len(encoded) // slots, -(-(slot + 1) * len(encoded) // slots)
    return np.stack([encoded[a:b].mean(0) for a, b in zip(starts, ends, strict=True)])


def _spans(lengths: Sequence[int]) -> Spans:
    stops = np.cumsum(lengths)
    return Spans(stops - lengths, stops)
