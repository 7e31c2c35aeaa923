"""A decoder layer, an encoder layer and a layer of memory attention, each as a call or two."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rollout.policies.reactive.cpu.attention import attend_memory, attend_past, keep
from rollout.policies.reactive.cpu.compiling import kernel
from rollout.policies.reactive.cpu.elementary import ONE, rms_norm, swiglu
from rollout.policies.reactive.cpu.gates import GateWeights, gate
from rollout.policies.reactive.cpu.products import CHUNK, Packed, add, linear, linear_of
from rollout.policies.reactive.cpu.sequences import (
    Heads,
    Rows,
    Scratch,
    Spans,
    attend_sequence,
    attend_sequences,
    by_dimension,
    rotate_rows,
    scratch,
)

# --- a decoder ------------------------------------------------------------------------------------


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
    """Where the tokens of a call are: `rope` of all positions, `rows` and `positions` as
    `attend_past` takes them."""

    rope: np.ndarray
    rows: np.ndarray
    positions: np.ndarray


class Cache(NamedTuple):
    """Keys and values of a layer, as `attend_past` takes them."""

    keys: np.ndarray
    values: np.ndarray


@kernel
def attend(
    x: np.ndarray,
    own: AttentionWeights,
    past: Cache,
    cross: AttentionWeights,
    memory: Cache,
    eps: np.float32,
    places: Places,
) -> None:
    """x += self-attention, then `read`, of x [tokens, width], of which the first len(positions)
    look at anything."""
    normed = np.empty_like(x)
    rms_norm(x, own.norm, eps, normed)
    projected = linear_of(normed, own.input)
    seen = np.zeros((x.shape[0], own.output.panels.shape[1]), np.float32)
    attend_past(projected, places.rope, places.rows, places.positions, past.keys, past.values, seen)
    add(x, linear_of(seen, own.output))
    read(x, cross, memory, eps, places)


@kernel
def read(
    x: np.ndarray, cross: AttentionWeights, memory: Cache, eps: np.float32, places: Places
) -> None:
    """x += attention to memory, of x as in `attend`."""
    normed = np.empty_like(x)
    rms_norm(x, cross.norm, eps, normed)
    projected = linear_of(normed, cross.input)
    seen = np.zeros((x.shape[0], cross.output.panels.shape[1]), np.float32)
    attend_memory(
        projected, places.rope, places.rows, places.positions, memory.keys, memory.values, seen
    )
    add(x, linear_of(seen, cross.output))


@kernel
def keep_past(
    x: np.ndarray,
    norm: np.ndarray,
    keys_values: Packed,
    past: Cache,
    eps: np.float32,
    places: Places,
) -> None:
    """Write the keys and values that `attend` writes to `past`, and nothing else. keys_values: the
    part of its input weights that gives them."""
    normed = np.empty_like(x)
    rms_norm(x, norm, eps, normed)
    keep(
        linear_of(normed, keys_values),
        0,
        places.rope,
        places.rows,
        places.positions,
        past.keys,
        past.values,
    )


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


# --- writing memory -------------------------------------------------------------------------------


class SequenceWeights(NamedTuple):
    """Attention of whole sequences: one asks, another, or the same one, is asked."""

    queries: Packed
    keys_values: Packed
    output: Packed


@kernel
def encode(
    x: np.ndarray,
    spans: Spans,
    rope: np.ndarray,
    weights: SequenceWeights,
    heads: Heads,
    norm: np.ndarray,
    eps: np.float32,
) -> None:
    """x += self-attention of each sequence in both directions, of x [tokens, width]. Rows outside
    `spans` are computed along; there are at least three after the last, as `attend_sequence`
    goes."""
    normed = np.empty_like(x)
    rms_norm(x, norm, eps, normed)
    queries, keys_values = (
        linear_of(normed, weights.queries),
        linear_of(normed, weights.keys_values),
    )
    rotate_rows(queries, heads.query, rope, spans)
    rotate_rows(keys_values, heads.kv, rope, spans)
    seen = np.zeros((x.shape[0], heads.query * heads.width), np.float32)
    attend_sequences(queries, spans, keys_values, spans, heads, seen)
    add(x, linear_of(seen, weights.output))


@kernel
def mean_memories(memories: np.ndarray, norm: np.ndarray, eps: np.float32, out: np.ndarray) -> None:
    """Normed means over the layers of memories [batch, layers, slots, width] → out [batch, at least
    slots, width]."""
    _, count, slots, _ = memories.shape
    for b in range(memories.shape[0]):
        mean = out[b, :slots]
        mean[:] = memories[b, 0]
        for layer in range(1, count):
            mean += memories[b, layer]
        mean *= ONE / np.float32(count)
        rms_norm(mean, norm, eps, mean)


class AskingWeights(NamedTuple):
    """A norm, the attention behind it, and how what is seen is mixed into the slots."""

    norm: np.ndarray
    """[width]."""
    attention: SequenceWeights
    gate: GateWeights


class _Asking(NamedTuple):
    """Scratch for one memory at a time. [slots, and up to a multiple of 4; features]."""

    normed: np.ndarray
    queries: np.ndarray
    seen: np.ndarray
    new: np.ndarray


@kernel
def _ask(
    slots: np.ndarray, asked: Rows, weights: AskingWeights, heads: Heads, by: _Asking, room: Scratch
) -> None:
    """Slots, normed in `by`, look at rows of keys and values and take up what they see."""
    linear(by.normed, weights.attention.queries, by.queries)
    attend_sequence(Rows(by.queries, 0, len(slots)), asked, heads, by.seen, room)
    linear(by.seen, weights.attention.output, by.new)
    gate(slots, by.new, weights.gate, slots)


NOTHING, SLOTS, MEAN, MIXTURE = range(4)
"""Targets of the attention that slots compute before they look at tokens."""


class MemoryWeights(NamedTuple):
    """A layer of memory attention."""

    seeing: int
    """NOTHING, SLOTS, MEAN or MIXTURE."""
    mixture: GateWeights
    """Read where `seeing` is MIXTURE."""
    of_slots: AskingWeights
    """Read unless `seeing` is NOTHING."""
    encoded_norm: np.ndarray
    """[width]."""
    of_tokens: AskingWeights
    heads: Heads
    eps: np.float32


@kernel
def write(
    before: np.ndarray,
    after: np.ndarray,
    layer: int,
    means: np.ndarray,
    encoded: np.ndarray,
    spans: Spans,
    rope: np.ndarray,
    weights: MemoryWeights,
) -> None:
    """One layer of memory attention: of memories before [batch, layers, slots, width], each with
    the tokens of its span in encoded [rows, width], to the same layer of after. One memory at a
    time, for what it takes stays in the first levels of cache.

    means: as from `mean_memories`, [batch, slots up to a multiple of 4, width], or of no memory
    where they are not seen.
    """
    seeing, heads, eps = weights.seeing, weights.heads, weights.eps
    of_slots, of_tokens = weights.of_slots, weights.of_tokens
    slots, width = before.shape[2:]
    rows = -(-slots // 4) * 4
    normed = np.empty_like(encoded)
    rms_norm(encoded, weights.encoded_norm, eps, normed)
    answers = linear_of(normed, of_tokens.attention.keys_values)
    rotate_rows(answers, heads.kv, rope, spans)
    longest = slots
    for b in range(len(spans.starts)):
        longest = max(longest, spans.stops[b] - spans.starts[b])
    room, features = scratch(heads, longest), heads.query * heads.width
    by = _Asking(
        np.zeros((rows, width), np.float32),
        np.empty((rows, of_tokens.attention.queries.bias.shape[0]), np.float32),
        np.empty((rows, features), np.float32),
        np.empty((rows, of_tokens.attention.output.bias.shape[0]), np.float32),
    )
    mixed, own = (
        np.zeros_like(by.normed),
        np.empty((rows, of_tokens.attention.keys_values.bias.shape[0]), np.float32),
    )
    for b in range(before.shape[0]):
        memory = after[b, layer]
        memory[:] = before[b, layer]
        if seeing != NOTHING:
            rms_norm(memory, of_slots.norm, eps, by.normed)
            if seeing == MIXTURE:
                gate(by.normed[:slots], means[b], weights.mixture, mixed)
            seen = mixed if seeing == MIXTURE else means[b] if seeing == MEAN else by.normed
            linear(seen, of_slots.attention.keys_values, own)
            _ask(memory, Rows(own, 0, slots), of_slots, heads, by, room)
        rms_norm(memory, of_tokens.norm, eps, by.normed)
        asked = Rows(answers, spans.starts[b], spans.stops[b])
        _ask(memory, asked, of_tokens, heads, by, room)


@kernel
def read_memory(
    memories: np.ndarray,
    layer: int,
    norm: np.ndarray,
    weights: Packed,
    eps: np.float32,
    rows: np.ndarray,
    cache: Cache,
) -> None:
    """Put keys and values of a decoder layer's memories [len(rows), layers, slots, width] into the
    given rows of the cache."""
    _, kv_heads, head, slots = cache.keys.shape
    normed = np.zeros((-(-slots // 4) * 4, memories.shape[3]), np.float32)
    projected = np.empty((normed.shape[0], weights.bias.shape[0]), np.float32)
    for i in range(len(rows)):
        rms_norm(memories[i, layer], norm, eps, normed)
        linear(normed, weights, projected)
        for part, seen in enumerate((cache.keys, cache.values)):
            by_dimension(projected, part * kv_heads * head, seen[rows[i]])
