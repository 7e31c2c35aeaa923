"""Inner loops of inference on CPUs, compiled from Python by Numba: what PyTorch takes half a dozen passes or calls for, in one.

A decoding step of a small model is a few hundred calls on little data, each of which costs more to make than to compute: so a decoder
layer is two calls here (`attend`, `feed_forward`). All arrays are float32, but for places and tokens.

Invariants: a row's result depends on that row alone, bit for bit, as every row is computed by the same instructions in the same order; what
is not a number stays not a number. Nothing here knows of modules or slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from common.compiling import kernel

_F0, _F1 = np.float32(0), np.float32(1)


# --- elementary functions ---------------------------------------------------------------------------------------------------

_LOG2_E = np.float32(1.4426950408889634)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
"""ln 2 in two parts, of which the first has so few digits that its product with a small integer is exact (Cody and Waite 1980)."""
_SMALLEST, _LARGEST = np.float32(-87), np.float32(88)
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1 / d) for d in (2, 6, 24, 120, 720, 5040))


@partial(kernel, fastmath={"contract"})
def _exp(x: np.float32) -> np.float32:
    """e^x to 2 units in the last place; 0 below -87, e^88 above 88."""
    bounded = _SMALLEST if x < _SMALLEST else x
    bounded = _LARGEST if bounded > _LARGEST else bounded
    n = np.floor(bounded * _LOG2_E + np.float32(0.5))
    r = bounded - n * _LN_2_HIGH
    r = r - n * _LN_2_LOW
    # |r| ≤ ln 2 / 2: the Taylor series to the seventh power is exact to 2^-26.
    series = _F1 + r * (_F1 + r * (_C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))))
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return _F0 if x < _SMALLEST else series * power


@kernel
def _largest(row: np.ndarray, count: int) -> np.float32:
    """Of the first `count` numbers of a row. Four at a time, for each has to wait for the one before."""
    top0 = top1 = top2 = top3 = row[0]
    whole = count - count % 4
    for i in range(0, whole, 4):
        top0 = row[i] if row[i] > top0 else top0
        top1 = row[i + 1] if row[i + 1] > top1 else top1
        top2 = row[i + 2] if row[i + 2] > top2 else top2
        top3 = row[i + 3] if row[i + 3] > top3 else top3
    for i in range(whole, count):
        top0 = row[i] if row[i] > top0 else top0
    top0, top2 = (top1 if top1 > top0 else top0), (top3 if top3 > top2 else top2)
    return top2 if top2 > top0 else top0


# --- normalisation and gating -----------------------------------------------------------------------------------------------


@kernel
def rms_norm(x: np.ndarray, weight: np.ndarray, eps: np.float32, out: np.ndarray) -> None:
    rows, width = x.shape
    for r in range(rows):
        squares = _F0
        for i in range(width):
            squares += x[r, i] * x[r, i]
        scale = _F1 / np.sqrt(squares / np.float32(width) + eps)
        for i in range(width):
            out[r, i] = x[r, i] * scale * weight[i]


@kernel
def swiglu(x: np.ndarray, out: np.ndarray) -> None:
    rows, width = out.shape
    for r in range(rows):
        for i in range(width):
            gate = x[r, width + i]
            out[r, i] = x[r, i] * gate / (_F1 + _exp(-gate))


# --- matrix products --------------------------------------------------------------------------------------------------------

PANEL = 16
"""Outputs that are computed together: as many as two registers of AVX2 hold, or one of AVX-512."""
_CHUNK = 64
"""Rows that go through all weights together: as many as stay in the first levels of cache."""


class Packed(NamedTuple):
    """A linear map with its weights in the order in which they are used, padded with zeros to whole panels of outputs."""

    panels: np.ndarray
    """[panels, features, PANEL]."""
    bias: np.ndarray
    """[panels · PANEL]."""


def pack(weight: np.ndarray, bias: np.ndarray | None = None) -> Packed:
    """A copy of weight [outputs, features] and bias [outputs]."""
    outputs, features = weight.shape
    count = -(-outputs // PANEL)
    padded, added = np.zeros((count * PANEL, features), np.float32), np.zeros(count * PANEL, np.float32)
    padded[:outputs] = weight
    if bias is not None:
        added[:outputs] = bias
    return Packed(np.ascontiguousarray(padded.reshape(count, PANEL, features).swapaxes(1, 2)), added)


@intrinsic
def _tile(typing_context: Any, x: Any, row: Any, panel: Any, bias: Any, out: Any, column: Any) -> Any:
    """out[row : row + 4, column : column + PANEL] = x[row : row + 4] · panel + bias[column : column + PANEL], all of them contiguous.

    Written as instructions, because a compiler keeps no array in registers, and the 4 × PANEL sums have to be there.
    """
    index, vector = ir.IntType(64), ir.VectorType(ir.FloatType(), PANEL)
    first = ir.Constant(ir.VectorType(ir.IntType(32), PANEL), [0] * PANEL)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        x, row, panel, bias, out, column = (
            context.make_array(kind)(context, builder, value) if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        features, width = builder.extract_value(x.shape, 1), builder.extract_value(out.shape, 1)
        rows = [builder.add(row, index(r)) for r in range(4)]

        def at(array: Any, place: Any) -> Any:
            return builder.bitcast(builder.gep(array.data, [place]), vector.as_pointer())

        multiply_add = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{PANEL}f32")
        sums = [cgutils.alloca_once_value(builder, builder.load(at(bias, column), align=4)) for _ in rows]
        starts = [builder.gep(x.data, [builder.mul(r, features)]) for r in rows]
        with cgutils.for_range(builder, features) as loop:
            weights = builder.load(at(panel, builder.mul(loop.index, index(PANEL))), align=4)
            for start, total in zip(starts, sums, strict=True):
                feature = builder.insert_element(vector(ir.Undefined), builder.load(builder.gep(start, [loop.index])), ir.IntType(32)(0))
                everywhere = builder.shuffle_vector(feature, vector(ir.Undefined), first)
                builder.store(builder.call(multiply_add, [everywhere, weights, builder.load(total)]), total)
        for r, total in zip(rows, sums, strict=True):
            builder.store(builder.load(total), at(out, builder.add(builder.mul(r, width), column)), align=4)
        return context.get_dummy_value()

    return types.void(x, types.intp, panel, bias, out, types.intp), generate


@kernel
def linear(x: np.ndarray, weights: Packed, out: np.ndarray) -> None:
    """x · weightᵀ + bias. x [rows, features], rows a multiple of 4; out [rows, panels · PANEL], 0 past the outputs. Raises ValueError where
    shapes are others.

    Where a product is this small, a library spends as long on its call and on arranging weights as on the product.
    """
    rows = x.shape[0]
    if rows % 4 or x.shape[1] != weights.panels.shape[1] or out.shape != (rows, weights.panels.shape[0] * PANEL):
        raise ValueError("a linear map is given rows that are no multiple of 4, or features or outputs that are not its own")
    for first in range(0, rows, _CHUNK):
        for n in range(weights.panels.shape[0]):
            for r in range(first, min(rows, first + _CHUNK), 4):
                _tile(x, r, weights.panels[n], weights.bias, out, n * PANEL)


@kernel
def _linear_of(x: np.ndarray, weights: Packed) -> np.ndarray:
    out = np.empty((x.shape[0], weights.bias.shape[0]), np.float32)
    linear(x, weights, out)
    return out


@kernel
def _add(x: np.ndarray, y: np.ndarray) -> None:
    """x [rows, width] += y [rows, at least width]."""
    for r in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[r, i] += y[r, i]


# --- attention --------------------------------------------------------------------------------------------------------------


@kernel
def _rotate(x: np.ndarray, rope: np.ndarray, out: np.ndarray, scale: np.float32) -> None:
    """Rotate the pairs (2i, 2i + 1) of one head. x, out: [head_dim]; rope [head_dim / 2, 2]: cosine and sine."""
    for i in range(rope.shape[0]):
        cosine, sine = rope[i, 0] * scale, rope[i, 1] * scale
        out[2 * i] = x[2 * i] * cosine - x[2 * i + 1] * sine
        out[2 * i + 1] = x[2 * i] * sine + x[2 * i + 1] * cosine


@kernel
def _look(query: np.ndarray, keys: np.ndarray, values: np.ndarray, count: int, scores: np.ndarray, out: np.ndarray) -> None:
    """What one query sees of the first `count` keys. query, out: [head_dim]; keys, values [head_dim, …]; scores: scratch.

    Keys and values lie by dimension, for inner loops over positions are long and over dimensions short; four dimensions go into one loop.
    """
    width = query.shape[0]
    fours = width - width % 4
    for p in range(count):
        scores[p] = _F0
    for d in range(0, fours, 4):
        q0, q1, q2, q3 = query[d], query[d + 1], query[d + 2], query[d + 3]
        k0, k1, k2, k3 = keys[d], keys[d + 1], keys[d + 2], keys[d + 3]
        for p in range(count):
            scores[p] += q0 * k0[p] + q1 * k1[p] + q2 * k2[p] + q3 * k3[p]
    for d in range(fours, width):
        for p in range(count):
            scores[p] += query[d] * keys[d, p]
    top = _largest(scores, count)
    for p in range(count):
        scores[p] = _exp(scores[p] - top)
    total = _F0
    for p in range(count):
        total += scores[p]
    share = _F1 / total
    for d in range(0, fours, 4):
        sum0 = sum1 = sum2 = sum3 = _F0
        for p in range(count):
            score = scores[p]
            sum0 += score * values[d, p]
            sum1 += score * values[d + 1, p]
            sum2 += score * values[d + 2, p]
            sum3 += score * values[d + 3, p]
        out[d], out[d + 1], out[d + 2], out[d + 3] = sum0 * share, sum1 * share, sum2 * share, sum3 * share
    for d in range(fours, width):
        sum0 = _F0
        for p in range(count):
            sum0 += scores[p] * values[d, p]
        out[d] = sum0 * share


@kernel
def attend_past(
    projected: np.ndarray, rope: np.ndarray, rows: np.ndarray, positions: np.ndarray, keys: np.ndarray, values: np.ndarray, out: np.ndarray
) -> None:
    """Causal self-attention of new tokens to their row's tokens up to their own position, which they join.

    projected [tokens, (query heads + 2 · kv heads) · head_dim]: queries, keys, values, not rotated; rope [positions, head_dim / 2, 2];
    rows, positions: int64 [tokens], tokens of one row in order; keys, values [rows, kv heads, head_dim, positions], both changed;
    out [tokens, query heads · head_dim].
    """
    kv_heads, width = keys.shape[1], keys.shape[2]
    query_heads = out.shape[1] // width
    share = query_heads // kv_heads
    scale = np.float32(1 / np.sqrt(width))
    scores, rotated = np.empty(keys.shape[3], np.float32), np.empty(width, np.float32)
    for t in range(len(positions)):
        row, position = rows[t], positions[t]
        for head in range(kv_heads):
            start = (query_heads + head) * width
            _rotate(projected[t, start : start + width], rope[position], rotated, _F1)
            start += kv_heads * width
            for d in range(width):
                keys[row, head, d, position] = rotated[d]
                values[row, head, d, position] = projected[t, start + d]
        for head in range(query_heads):
            here = slice(head * width, (head + 1) * width)
            _rotate(projected[t, here], rope[position], rotated, scale)
            _look(rotated, keys[row, head // share], values[row, head // share], position + 1, scores, out[t, here])


@kernel
def attend_memory(
    projected: np.ndarray, rope: np.ndarray, rows: np.ndarray, positions: np.ndarray, keys: np.ndarray, values: np.ndarray, out: np.ndarray
) -> None:
    """Cross-attention of tokens to all that their row remembers: as `attend_past`, with projected [tokens, query heads · head_dim] and keys
    and values that are only read."""
    kv_heads, width, count = keys.shape[1], keys.shape[2], keys.shape[3]
    query_heads = out.shape[1] // width
    share = query_heads // kv_heads
    scale = np.float32(1 / np.sqrt(width))
    scores, rotated = np.empty(count, np.float32), np.empty(width, np.float32)
    for t in range(len(positions)):
        row = rows[t]
        for head in range(query_heads):
            here = slice(head * width, (head + 1) * width)
            _rotate(projected[t, here], rope[positions[t]], rotated, scale)
            _look(rotated, keys[row, head // share], values[row, head // share], count, scores, out[t, here])


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
    projected = _linear_of(normed, own.input)
    seen = np.zeros((x.shape[0], own.output.panels.shape[1]), np.float32)
    attend_past(projected, places.rope, places.rows, places.positions, past.keys, past.values, seen)
    _add(x, _linear_of(seen, own.output))

    rms_norm(x, cross.norm, eps, normed)
    projected = _linear_of(normed, cross.input)
    seen = np.zeros((x.shape[0], cross.output.panels.shape[1]), np.float32)
    attend_memory(projected, places.rope, places.rows, places.positions, memory.keys, memory.values, seen)
    _add(x, _linear_of(seen, cross.output))


@kernel
def feed_forward(x: np.ndarray, weights: FeedForwardWeights, eps: np.float32) -> None:
    """x += SwiGLU, of x [tokens, width]."""
    for first in range(0, x.shape[0], _CHUNK):
        part = x[first : first + _CHUNK]
        normed = np.empty_like(part)
        rms_norm(part, weights.norm, eps, normed)
        inner = np.empty((part.shape[0], weights.down.panels.shape[1]), np.float32)
        swiglu(_linear_of(normed, weights.up), inner)
        _add(part, _linear_of(inner, weights.down))


@kernel
def logits(x: np.ndarray, norm: np.ndarray, head: Packed, eps: np.float32, out: np.ndarray) -> None:
    """x [tokens, width] → out [tokens, panels · PANEL]: the vocabulary, and 0 past it."""
    normed = np.empty_like(x)
    rms_norm(x, norm, eps, normed)
    linear(normed, head, out)


# --- writing memory -----------------------------------------------------------------------------------------------------------


class Spans(NamedTuple):
    """Sequences that stand one after another in rows: of each, its first row and the one past its last, int64 [sequences]."""

    starts: np.ndarray
    stops: np.ndarray


class Heads(NamedTuple):
    query: int
    kv: int
    width: int


class SequenceWeights(NamedTuple):
    """Attention of whole sequences: one asks, another, or the same one, is asked."""

    queries: Packed
    keys_values: Packed
    output: Packed


class GateWeights(NamedTuple):
    """A residual gate: `most` · sigmoid(`most` · (weight · status + bias)) the share of what is new, the rest of `most` of what was."""

    weight: np.ndarray
    """[1 or slots, slots]."""
    bias: np.ndarray
    most: np.float32


_NO_BIAS = np.zeros(PANEL, np.float32)


@kernel
def _rotate_rows(x: np.ndarray, heads: int, rope: np.ndarray, spans: Spans) -> None:
    """Rotate the first heads of each row by its place in its sequence, in place."""
    width = 2 * rope.shape[1]
    rotated = np.empty(width, np.float32)
    for s in range(len(spans.starts)):
        for r in range(spans.starts[s], spans.stops[s]):
            for head in range(heads):
                here = slice(head * width, (head + 1) * width)
                _rotate(x[r, here], rope[r - spans.starts[s]], rotated, _F1)
                x[r, here] = rotated


@kernel
def _softmax(scores: np.ndarray, count: int, shares: np.ndarray) -> None:
    """e^(score - largest) of each column over the first `count` rows of scores [rows, PANEL], in place; shares [PANEL]: 1 / their totals."""
    tops = scores[0].copy()
    for p in range(1, count):
        for c in range(PANEL):
            tops[c] = scores[p, c] if scores[p, c] > tops[c] else tops[c]
    for p in range(count):
        for c in range(PANEL):
            scores[p, c] -= tops[c]
    flat = scores.reshape(-1)  # one long loop goes through vectors where many short ones do not
    for i in range(count * PANEL):
        flat[i] = _exp(flat[i])
    shares[:] = _F0
    for p in range(count):
        for c in range(PANEL):
            shares[c] += scores[p, c]
    for c in range(PANEL):
        shares[c] = _F1 / shares[c]


@kernel
def attend_sequences(queries: np.ndarray, asking: Spans, keys_values: np.ndarray, asked: Spans, heads: Heads, out: np.ndarray) -> None:
    """Attention of each asking sequence to all of the asked one of the same number, whatever its length.

    queries [rows, at least query heads · width], keys_values [rows, at least 2 · kv heads · width]; out [rows, query heads · width].
    `PANEL` queries are taken together, each a column: so no sum or vector depends on how many there are.
    """
    width = heads.width
    share = heads.query // heads.kv
    scale = np.float32(1 / np.sqrt(width))
    panel, shares = np.empty((width, PANEL), np.float32), np.empty(PANEL, np.float32)
    seen = np.empty((-(-width // 4) * 4, PANEL), np.float32)
    for s in range(len(asking.starts)):
        first, count = asked.starts[s], asked.stops[s] - asked.starts[s]
        # Tiles are of four rows.
        keys, values = np.zeros((-(-count // 4) * 4, width), np.float32), np.zeros((seen.shape[0], count), np.float32)
        scores = np.empty((keys.shape[0], PANEL), np.float32)
        for kv in range(heads.kv):
            for p in range(count):
                for d in range(width):
                    keys[p, d] = keys_values[first + p, kv * width + d]
                    values[d, p] = keys_values[first + p, (heads.kv + kv) * width + d]
            for head in range(kv * share, (kv + 1) * share):
                for start in range(asking.starts[s], asking.stops[s], PANEL):
                    columns = min(PANEL, asking.stops[s] - start)
                    panel[:] = _F0
                    for c in range(columns):
                        for d in range(width):
                            panel[d, c] = queries[start + c, head * width + d] * scale
                    for p in range(0, keys.shape[0], 4):
                        _tile(keys, p, panel, _NO_BIAS, scores, 0)
                    _softmax(scores, count, shares)
                    for d in range(0, seen.shape[0], 4):
                        _tile(values, d, scores, _NO_BIAS, seen, 0)
                    for c in range(columns):
                        for d in range(width):
                            out[start + c, head * width + d] = seen[d, c] * shares[c]


@kernel
def encode(
    x: np.ndarray, spans: Spans, rope: np.ndarray, weights: SequenceWeights, heads: Heads, norm: np.ndarray, eps: np.float32
) -> None:
    """x += self-attention of each sequence in both directions, of x [tokens, width]. Rows outside `spans` are computed along."""
    normed = np.empty_like(x)
    rms_norm(x, norm, eps, normed)
    queries, keys_values = _linear_of(normed, weights.queries), _linear_of(normed, weights.keys_values)
    _rotate_rows(queries, heads.query, rope, spans)
    _rotate_rows(keys_values, heads.kv, rope, spans)
    seen = np.zeros((x.shape[0], heads.query * heads.width), np.float32)
    attend_sequences(queries, spans, keys_values, spans, heads, seen)
    _add(x, _linear_of(seen, weights.output))


@kernel
def gate(old: np.ndarray, new: np.ndarray, memories: Spans, weights: GateWeights, out: np.ndarray) -> None:
    """Old and new slots [rows, width] mixed; new may have more columns, out may be old."""
    slots, width = weights.weight.shape[1], old.shape[1]
    status = np.empty(slots, np.float32)
    for start in memories.starts:
        for s in range(slots):
            total = _F0
            for i in range(width):
                total += old[start + s, i] + new[start + s, i]
            status[s] = total / np.float32(width)
        share = _F0
        for s in range(slots):
            if s < weights.weight.shape[0]:
                before = weights.bias[s]
                for other in range(slots):
                    before += weights.weight[s, other] * status[other]
                share = weights.most / (_F1 + _exp(-weights.most * before))
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
    queries, keys_values = _linear_of(asking, weights.queries), _linear_of(answers, weights.keys_values)
    if rope.shape[0]:
        _rotate_rows(keys_values, heads.kv, rope, asked)
    seen = np.zeros((slots.shape[0], heads.query * heads.width), np.float32)
    attend_sequences(queries, memories, keys_values, asked, heads, seen)
    gate(slots, _linear_of(seen, weights.output), memories, residual, slots)


@kernel
def read_memory(slots: np.ndarray, norm: np.ndarray, weights: Packed, eps: np.float32, rows: np.ndarray, cache: Cache) -> None:
    """What a decoder layer sees of memories: keys and values of slots [at least len(rows) · slots, width], one memory after another, put
    into the given rows of the cache."""
    normed = np.empty_like(slots)
    rms_norm(slots, norm, eps, normed)
    projected = _linear_of(normed, weights)
    _, kv_heads, width, count = cache.keys.shape
    for i, row in enumerate(rows):
        for head in range(kv_heads):
            for d in range(width):
                for s in range(count):
                    cache.keys[row, head, d, s] = projected[i * count + s, head * width + d]
                    cache.values[row, head, d, s] = projected[i * count + s, (kv_heads + head) * width + d]


@kernel
def mean_of_sum(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    rows, width = x.shape
    for r in range(rows):
        total = _F0
        for i in range(width):
            total += x[r, i] + y[r, i]
        out[r] = total / np.float32(width)


# --- sampling ---------------------------------------------------------------------------------------------------------------

_BLOCK = 64


@kernel
def draw(logits: np.ndarray, uniforms: np.ndarray, tokens: np.ndarray, log_probs: np.ndarray) -> None:
    rows, vocabulary = logits.shape
    blocks = -(-vocabulary // _BLOCK)
    ends = np.empty(blocks, np.float64)
    for r in range(rows):
        top = _largest(logits[r], vocabulary)
        total = 0.0
        for block in range(blocks):
            part = _F0
            for i in range(block * _BLOCK, min(vocabulary, (block + 1) * _BLOCK)):
                part += _exp(logits[r, i] - top)
            total += float(part)
            ends[block] = total
        target = uniforms[r] * total
        block = 0
        while block < blocks - 1 and not ends[block] > target:
            block += 1
        passed = ends[block - 1] if block else 0.0
        # Rounding may put the target a hair past the end of its block: then it is the last token there that has any weight.
        token = block * _BLOCK
        for i in range(block * _BLOCK, min(vocabulary, (block + 1) * _BLOCK)):
            weight = _exp(logits[r, i] - top)
            if weight > _F0:
                token = i
                passed += float(weight)
                if passed > target:
                    break
        tokens[r] = token
        log_probs[r] = np.float64(logits[r, token]) - np.float64(top) - np.log(total)


@kernel
def log_probs(logits: np.ndarray, tokens: np.ndarray, out: np.ndarray) -> None:
    rows, vocabulary = logits.shape
    for r in range(rows):
        top = _largest(logits[r], vocabulary)
        total = 0.0
        for start in range(0, vocabulary, _BLOCK):
            part = _F0
            for i in range(start, min(vocabulary, start + _BLOCK)):
                part += _exp(logits[r, i] - top)
            total += float(part)
        out[r] = np.float64(logits[r, tokens[r]]) - np.float64(top) - np.log(total)
