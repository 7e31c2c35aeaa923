"""A decoder layer, an encoder layer and a layer of memory attention, each as a call or two."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from common.compiling import kernel
from common.models.kernels.attention import Heads, Spans, attend_memory, attend_past, attend_sequences, keep, rotate_rows
from common.models.kernels.elementary import ONE, ZERO, exp, mean_of_sum, rms_norm, swiglu
from common.models.kernels.products import CHUNK, Packed, add, linear, linear_of

# --- a decoder ----------------------------------------------------------------------------------------------------------------


class AttentionWeights(NamedTuple):
    """A norm and the attention behind it."""

    norm: np.ndarray
    """[width]."""
    input: Packed
    """To queries, keys and values, or to queries alone."""
    output: Packed


class FeedForwardWeights(NamedTuple):
    """A norm and the SwiGLU behind it."""

    norm: np.ndarray
    """[width]."""
    up: Packed
    """To 2 · inner."""
    down: Packed


class Places(NamedTuple):
    """Where the tokens of a call are: `rope` of all positions, `rows` and `positions` as `attend_past` takes them."""

    rope: np.ndarray
    rows: np.ndarray
    positions: np.ndarray


class Cache(NamedTuple):
    """Keys and values of a layer, as `attend_past` takes them."""

    keys: np.ndarray
    values: np.ndarray


@kernel
def attend(
    x: np.ndarray, own: AttentionWeights, past: Cache, cross: AttentionWeights, memory: Cache, eps: np.float32, places: Places
) -> None:
    """x += self-attention, then x += attention to memory, of x [tokens, width], of which the first len(positions) look at anything."""
    normed = np.empty_like(x)

    rms_norm(x, own.norm, eps, normed)
    projected = linear_of(normed, own.input)
    seen = np.zeros((x.shape[0], own.output.panels.shape[1]), np.float32)
    attend_past(projected, places.rope, places.rows, places.positions, past.keys, past.values, seen)
    add(x, linear_of(seen, own.output))

    rms_norm(x, cross.norm, eps, normed)
    projected = linear_of(normed, cross.input)
    seen = np.zeros((x.shape[0], cross.output.panels.shape[1]), np.float32)
    attend_memory(projected, places.rope, places.rows, places.positions, memory.keys, memory.values, seen)
    add(x, linear_of(seen, cross.output))


@kernel
def keep_past(x: np.ndarray, norm: np.ndarray, keys_values: Packed, past: Cache, eps: np.float32, places: Places) -> None:
    """What `attend` leaves in `past`, alone. keys_values: the part of its input weights that gives them."""
    normed = np.empty_like(x)
    rms_norm(x, norm, eps, normed)
    keep(linear_of(normed, keys_values), 0, places.rope, places.rows, places.positions, past.keys, past.values)


@kernel
def feed_forward(x: np.ndarray, weights: FeedForwardWeights, eps: np.float32) -> None:
    """x += SwiGLU, of x [tokens, width]."""
    for first in range(0, x.shape[0], CHUNK):
        part = x[first : first + CHUNK]
        normed = np.empty_like(part)
        rms_norm(part, weights.norm, eps, normed)
        inner = np.empty((part.shape[0], weights.down.panels.shape[1]), np.float32)
        swiglu(linear_of(normed, weights.up), inner)
        add(part, linear_of(inner, weights.down))


@kernel
def logits(x: np.ndarray, norm: np.ndarray, head: Packed, eps: np.float32, out: np.ndarray) -> None:
    """x [tokens, width] → out [tokens, panels · PANEL]: the vocabulary, and 0 past it."""
    normed = np.empty_like(x)
    rms_norm(x, norm, eps, normed)
    linear(normed, head, out)


# --- writing memory -----------------------------------------------------------------------------------------------------------


class SequenceWeights(NamedTuple):
    """Attention of whole sequences: one asks, another, or the same one, is asked."""

    queries: Packed
    keys_values: Packed
    output: Packed


class GateWeights(NamedTuple):
    """A residual gate: `most` · sigmoid(`most` · (weight · status + bias)) of what is new, and the rest of `most` of what was."""

    weight: np.ndarray
    """[1 or slots, slots], or [1 or slots, 0] where the share depends on no status."""
    bias: np.ndarray
    """[1 or slots]."""
    most: np.float32


@kernel
def encode(
    x: np.ndarray, spans: Spans, rope: np.ndarray, weights: SequenceWeights, heads: Heads, norm: np.ndarray, eps: np.float32
) -> None:
    """x += self-attention of each sequence in both directions, of x [tokens, width]. Rows outside `spans` are computed along."""
    normed = np.empty_like(x)
    rms_norm(x, norm, eps, normed)
    queries, keys_values = linear_of(normed, weights.queries), linear_of(normed, weights.keys_values)
    rotate_rows(queries, heads.query, rope, spans)
    rotate_rows(keys_values, heads.kv, rope, spans)
    seen = np.zeros((x.shape[0], heads.query * heads.width), np.float32)
    attend_sequences(queries, spans, keys_values, spans, heads, seen)
    add(x, linear_of(seen, weights.output))


@kernel
def gate(old: np.ndarray, new: np.ndarray, memories: Spans, weights: GateWeights, out: np.ndarray) -> None:
    """Old and new slots [rows, width] mixed; new may have more columns, out may be old. Where a share depends on
    statuses, a slot that is not finite makes all of its memory so."""
    width = old.shape[1]
    gates, statuses = weights.weight.shape
    status = np.empty(statuses, np.float32)
    for start, stop in zip(memories.starts, memories.stops):  # noqa: B905 (Numba knows no `strict`)
        if statuses:
            mean_of_sum(old[start:stop], new[start:stop], status)
        share = ZERO
        for s in range(stop - start):
            if s < gates:
                before = weights.bias[s]
                for other in range(statuses):
                    before += weights.weight[s, other] * status[other]
                share = weights.most / (ONE + exp(-weights.most * before))
            kept = weights.most - share
            for i in range(width):
                out[start + s, i] = share * new[start + s, i] + kept * old[start + s, i]


@kernel
def ask(
    slots: np.ndarray, asking: np.ndarray, memories: Spans, answers: np.ndarray, asked: Spans, rope: np.ndarray,
    weights: SequenceWeights, heads: Heads, residual: GateWeights,
) -> None:  # fmt: skip
    """slots [rows, width] = gate(slots, what they see of `answers` [rows, width] when they ask by `asking` [rows, width]).

    rope: of the answers' keys, [positions, width of a head / 2, 2]; without positions where answers have no order.
    """
    queries, keys_values = linear_of(asking, weights.queries), linear_of(answers, weights.keys_values)
    if rope.shape[0]:
        rotate_rows(keys_values, heads.kv, rope, asked)
    seen = np.zeros((slots.shape[0], heads.query * heads.width), np.float32)
    attend_sequences(queries, memories, keys_values, asked, heads, seen)
    gate(slots, linear_of(seen, weights.output), memories, residual, slots)


@kernel
def read_memory(slots: np.ndarray, norm: np.ndarray, weights: Packed, eps: np.float32, rows: np.ndarray, cache: Cache) -> None:
    """What a decoder layer sees of memories: keys and values of slots [at least len(rows) · slots, width], one memory after another, put
    into the given rows of the cache."""
    normed = np.empty_like(slots)
    rms_norm(slots, norm, eps, normed)
    projected = linear_of(normed, weights)
    _, kv_heads, width, count = cache.keys.shape
    for i, row in enumerate(rows):
        for head in range(kv_heads):
            for d in range(width):
                for s in range(count):
                    cache.keys[row, head, d, s] = projected[i * count + s, head * width + d]
                    cache.values[row, head, d, s] = projected[i * count + s, (kv_heads + head) * width + d]
