"""Attention: of single tokens to a cache, and of whole sequences to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from common.compiling import kernel
from common.models.kernels.elementary import LN_2_HIGH, LN_2_LOW, LOG2_E, ONE, SMALLEST, TAYLOR, ZERO, exp, largest
from common.models.kernels.products import FLOAT, INTEGER, PANEL, arrays, fetch, multiply_add, place, tile

# --- to a cache ---------------------------------------------------------------------------------------------------------------


@kernel
def rotate(x: np.ndarray, rope: np.ndarray, out: np.ndarray, scale: np.float32) -> None:
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
        scores[p] = ZERO
    for d in range(0, fours, 4):
        q0, q1, q2, q3 = query[d], query[d + 1], query[d + 2], query[d + 3]
        k0, k1, k2, k3 = keys[d], keys[d + 1], keys[d + 2], keys[d + 3]
        for p in range(count):
            scores[p] += q0 * k0[p] + q1 * k1[p] + q2 * k2[p] + q3 * k3[p]
    for d in range(fours, width):
        for p in range(count):
            scores[p] += query[d] * keys[d, p]
    top = largest(scores, count)
    for p in range(count):
        scores[p] = exp(scores[p] - top)
    total = ZERO
    for p in range(count):
        total += scores[p]
    share = ONE / total
    for d in range(0, fours, 4):
        sum0 = sum1 = sum2 = sum3 = ZERO
        for p in range(count):
            score = scores[p]
            sum0 += score * values[d, p]
            sum1 += score * values[d + 1, p]
            sum2 += score * values[d + 2, p]
            sum3 += score * values[d + 3, p]
        out[d], out[d + 1], out[d + 2], out[d + 3] = sum0 * share, sum1 * share, sum2 * share, sum3 * share
    for d in range(fours, width):
        sum0 = ZERO
        for p in range(count):
            sum0 += scores[p] * values[d, p]
        out[d] = sum0 * share


@kernel
def keep(
    projected: np.ndarray, heads: int, rope: np.ndarray, rows: np.ndarray, positions: np.ndarray, keys: np.ndarray, values: np.ndarray
) -> None:
    """Put new tokens into their rows. projected [tokens, at least (heads + 2 · kv heads) · head_dim]: after `heads` of queries, keys and
    values, not rotated; the rest as in `attend_past`."""
    kv_heads, width = keys.shape[1], keys.shape[2]
    rotated = np.empty(width, np.float32)
    for t in range(len(positions)):
        row, position = rows[t], positions[t]
        for head in range(kv_heads):
            start = (heads + head) * width
            rotate(projected[t, start : start + width], rope[position], rotated, ONE)
            start += kv_heads * width
            for d in range(width):
                keys[row, head, d, position] = rotated[d]
                values[row, head, d, position] = projected[t, start + d]


@kernel
def attend_past(
    projected: np.ndarray, rope: np.ndarray, rows: np.ndarray, positions: np.ndarray, keys: np.ndarray, values: np.ndarray, out: np.ndarray
) -> None:
    """Causal self-attention of new tokens to their row's tokens up to their own position, which they join.

    projected [tokens, (query heads + 2 · kv heads) · head_dim]: queries, keys, values, not rotated; rope [positions, head_dim / 2, 2];
    rows, positions: int64 [tokens]; keys, values [rows, kv heads, head_dim, positions], both changed;
    out [tokens, query heads · head_dim].
    """
    kv_heads, width = keys.shape[1], keys.shape[2]
    query_heads = out.shape[1] // width
    share = query_heads // kv_heads
    scale = np.float32(1 / np.sqrt(width))
    scores, rotated = np.empty(keys.shape[3], np.float32), np.empty(width, np.float32)
    keep(projected, query_heads, rope, rows, positions, keys, values)
    for t in range(len(positions)):
        row, position = rows[t], positions[t]
        for head in range(query_heads):
            here = slice(head * width, (head + 1) * width)
            rotate(projected[t, here], rope[position], rotated, scale)
            _look(rotated, keys[row, head // share], values[row, head // share], position + 1, scores, out[t, here])


@kernel
def _fetch_next(keys: np.ndarray, values: np.ndarray, row: int, head: int, size: int) -> None:
    """Ask for the `size` keys and values of the head after this one, while this one is looked at."""
    start = (row * keys.shape[1] + head + 1) * size
    fetch(keys, start, size)
    fetch(values, start, size)


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
            _fetch_next(keys, values, row, head // share, width * count)
            here = slice(head * width, (head + 1) * width)
            rotate(projected[t, here], rope[positions[t]], rotated, scale)
            _look(rotated, keys[row, head // share], values[row, head // share], count, scores, out[t, here])


# --- of sequences -------------------------------------------------------------------------------------------------------------


class Spans(NamedTuple):
    """Sequences that stand one after another in rows: of each, its first row and the one past its last, int64 [sequences]."""

    starts: np.ndarray
    stops: np.ndarray


class Heads(NamedTuple):
    query: int
    kv: int
    width: int


_NO_BIAS = np.zeros(PANEL, np.float32)


@kernel
def rotate_rows(x: np.ndarray, heads: int, rope: np.ndarray, spans: Spans) -> None:
    """Rotate the first heads of each row by its place in its sequence, in place."""
    width = 2 * rope.shape[1]
    rotated = np.empty(width, np.float32)
    for s in range(len(spans.starts)):
        for r in range(spans.starts[s], spans.stops[s]):
            for head in range(heads):
                here = slice(head * width, (head + 1) * width)
                rotate(x[r, here], rope[r - spans.starts[s]], rotated, ONE)
                x[r, here] = rotated


def _exp(builder: Any, x: Any) -> Any:
    """`exp` of PANEL numbers that are at most 0, as instructions."""

    def number(value: Any) -> Any:
        return ir.Constant(FLOAT, [float(value)] * PANEL)

    def integer(value: int) -> Any:
        return ir.Constant(INTEGER, [value] * PANEL)

    floor = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOAT, [FLOAT]), f"llvm.floor.v{PANEL}f32")
    small = builder.fcmp_ordered("<", x, number(SMALLEST))
    bounded = builder.select(small, number(SMALLEST), x)
    n = builder.call(floor, [multiply_add(builder, bounded, number(LOG2_E), number(0.5))])
    r = multiply_add(builder, n, number(-LN_2_HIGH), bounded)
    r = multiply_add(builder, n, number(-LN_2_LOW), r)
    series = number(TAYLOR[-1])
    for coefficient in TAYLOR[-2::-1]:
        series = multiply_add(builder, r, series, number(coefficient))
    # What is not a number has no integer, not even a wrong one; `series` keeps it.
    whole = builder.fptosi(builder.select(builder.fcmp_ordered("ord", n, n), n, number(0)), INTEGER)
    power = builder.shl(builder.add(whole, integer(127)), integer(23))
    return builder.select(small, number(0), builder.fmul(series, builder.bitcast(power, FLOAT)))


@intrinsic
def _softmax(typing_context: Any, scores: Any, count: Any, shares: Any) -> Any:
    """e^(score - largest) of each column over the first `count` rows of scores [rows, PANEL], in place, and 1 / totals: shares [PANEL].

    Written as instructions, because a compiler makes no vectors of loops as short as a row.
    """
    index = ir.IntType(64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        scores, count, shares = arrays(context, builder, signature, arguments)
        top = cgutils.alloca_once_value(builder, builder.load(place(builder, scores, index(0)), align=4))
        with cgutils.for_range(builder, count) as loop:
            row = builder.load(place(builder, scores, builder.mul(loop.index, index(PANEL))), align=4)
            before = builder.load(top)
            builder.store(builder.select(builder.fcmp_ordered(">", row, before), row, before), top)
        total = cgutils.alloca_once_value(builder, ir.Constant(FLOAT, [0.0] * PANEL))
        with cgutils.for_range(builder, count) as loop:
            here = place(builder, scores, builder.mul(loop.index, index(PANEL)))
            weight = _exp(builder, builder.fsub(builder.load(here, align=4), builder.load(top)))
            builder.store(weight, here, align=4)
            builder.store(builder.fadd(builder.load(total), weight), total)
        one = ir.Constant(FLOAT, [1.0] * PANEL)
        builder.store(builder.fdiv(one, builder.load(total)), place(builder, shares, index(0)), align=4)
        return context.get_dummy_value()

    return types.void(scores, types.intp, shares), generate


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
                    panel[:] = ZERO
                    for c in range(columns):
                        for d in range(width):
                            panel[d, c] = queries[start + c, head * width + d] * scale
                    for p in range(0, keys.shape[0], 4):
                        tile(keys, p, panel, _NO_BIAS, scores, 0)
                    _softmax(scores, count, shares)
                    for d in range(0, seen.shape[0], 4):
                        tile(values, d, scores, _NO_BIAS, seen, 0)
                    for c in range(columns):
                        for d in range(width):
                            out[start + c, head * width + d] = seen[d, c] * shares[c]
