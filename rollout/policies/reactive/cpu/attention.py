"""Attention of single tokens to a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rollout.policies.reactive.cpu.compiling import kernel
from rollout.policies.reactive.cpu.elementary import ONE, ZERO, exp, largest
from rollout.policies.reactive.cpu.products import (
    FLOAT,
    INTEGER,
    PANEL,
    arrays,
    everywhere,
    fetch,
    multiply_add,
    place,
)


@intrinsic
def rotate(
    typing_context: Any, x: Any, first: Any, rope: Any, position: Any, out: Any, at: Any, scale: Any
) -> Any:
    """scale · the numbers of one head, x from flat index `first` on, with the pairs (2i, 2i + 1)
    rotated: to out from flat index `at` on, which may be the same place. rope [positions, width of
    a head / 2, 2]: cosine and sine.

    Written as instructions: a compiler makes no vectors of pairs as few as a head's. What is left
    over from PANEL goes pair by pair.
    """
    index = ir.IntType(64)

    def taken(builder: Any, x: Any, lanes: Sequence[int]) -> Any:
        return builder.shuffle_vector(x, FLOAT(ir.Undefined), ir.Constant(INTEGER, lanes))

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        x, first, rope, position, out, at, scale = arrays(context, builder, signature, arguments)
        width = builder.mul(builder.extract_value(rope.shape, 1), index(2))
        angles = builder.mul(position, width)
        panels = builder.sdiv(width, index(PANEL))
        scales = everywhere(builder, scale)
        with cgutils.for_range(builder, panels) as loop:
            done = builder.mul(loop.index, index(PANEL))
            numbers = builder.load(place(builder, x, builder.add(first, done)), align=4)
            both = builder.load(place(builder, rope, builder.add(angles, done)), align=4)
            cosines, sines = (
                taken(builder, both, [i - i % 2 + part for i in range(PANEL)]) for part in (0, 1)
            )
            sines = builder.fmul(sines, ir.Constant(FLOAT, [-1.0, 1.0] * (PANEL // 2)))
            others = taken(builder, numbers, [i ^ 1 for i in range(PANEL)])
            turned = multiply_add(builder, numbers, cosines, builder.fmul(others, sines))
            builder.store(
                builder.fmul(turned, scales), place(builder, out, builder.add(at, done)), align=4
            )

        def number(array: Any, start: Any, i: Any) -> Any:
            return builder.gep(array.data, [builder.add(start, i)])

        with cgutils.for_range_slice(
            builder, builder.mul(panels, index(PANEL)), width, index(2)
        ) as (i, _):
            after = builder.add(i, index(1))
            (even, odd), (cosine, sine) = (
                [builder.load(number(array, start, each)) for each in (i, after)]
                for array, start in ((x, first), (rope, angles))
            )
            turned = builder.fsub(builder.fmul(even, cosine), builder.fmul(odd, sine))
            turned_odd = builder.fadd(builder.fmul(even, sine), builder.fmul(odd, cosine))
            builder.store(builder.fmul(turned, scale), number(out, at, i))
            builder.store(builder.fmul(turned_odd, scale), number(out, at, after))
        return context.get_dummy_value()

    return types.void(x, types.intp, rope, types.intp, out, types.intp, types.float32), generate


@kernel
def _look(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    count: int,
    scores: np.ndarray,
    out: np.ndarray,
) -> None:
    """Attention of one query to the first `count` keys. query, out: [head_dim]; keys, values
    [head_dim, …]; scores: scratch.

    Keys and values lie by dimension, for inner loops over positions are long and over dimensions
    short; four dimensions go into one loop.
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
        out[d], out[d + 1], out[d + 2], out[d + 3] = (
            sum0 * share,
            sum1 * share,
            sum2 * share,
            sum3 * share,
        )
    for d in range(fours, width):
        sum0 = ZERO
        for p in range(count):
            sum0 += scores[p] * values[d, p]
        out[d] = sum0 * share


@kernel
def keep(
    projected: np.ndarray,
    heads: int,
    rope: np.ndarray,
    rows: np.ndarray,
    positions: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
) -> None:
    """Put new tokens into their rows. projected [tokens, at least (heads + 2 · kv heads) ·
    head_dim]: after `heads` of queries, keys and values, not rotated; the rest as in
    `attend_past`."""
    kv_heads, width = keys.shape[1], keys.shape[2]
    rotated = np.empty(width, np.float32)
    for t in range(len(positions)):
        row, position = rows[t], positions[t]
        for head in range(kv_heads):
            start = (heads + head) * width
            rotate(projected, t * projected.shape[1] + start, rope, position, rotated, 0, ONE)
            start += kv_heads * width
            for d in range(width):
                keys[row, head, d, position] = rotated[d]
                values[row, head, d, position] = projected[t, start + d]


@kernel
def attend_past(
    projected: np.ndarray,
    rope: np.ndarray,
    rows: np.ndarray,
    positions: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    out: np.ndarray,
) -> None:
    """Causal self-attention of new tokens to their row's tokens up to their own position, which
    they join.

    projected [tokens, (query heads + 2 · kv heads) · head_dim]: queries, keys, values, not rotated;
    rope [positions, head_dim / 2, 2];
    rows, positions: int64 [tokens]; keys, values [rows, kv heads, head_dim, positions], both
    changed; out [tokens, query heads · head_dim].
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
            rotate(
                projected, t * projected.shape[1] + head * width, rope, position, rotated, 0, scale
            )
            _look(
                rotated,
                keys[row, head // share],
                values[row, head // share],
                position + 1,
                scores,
                out[t, here],
            )


@kernel
def _fetch_next(keys: np.ndarray, values: np.ndarray, row: int, head: int, size: int) -> None:
    """Ask for the `size` keys and values of the head after this one, while this one is looked
    at."""
    start = (row * keys.shape[1] + head + 1) * size
    fetch(keys, start, size)
    fetch(values, start, size)


@kernel
def attend_memory(
    projected: np.ndarray,
    rope: np.ndarray,
    rows: np.ndarray,
    positions: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    out: np.ndarray,
) -> None:
    """Cross-attention of tokens to all that their row remembers: as `attend_past`, with projected
    [tokens, query heads · head_dim] and keys and values that are only read."""
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
            rotate(
                projected,
                t * projected.shape[1] + head * width,
                rope,
                positions[t],
                rotated,
                0,
                scale,
            )
            _look(
                rotated,
                keys[row, head // share],
                values[row, head // share],
                count,
                scores,
                out[t, here],
            )
