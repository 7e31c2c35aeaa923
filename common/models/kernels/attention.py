"""Attention of single tokens to a cache."""

from __future__ import annotations

import numpy as np

from common.compiling import kernel
from common.models.kernels.elementary import ONE, ZERO, exp, largest
from common.models.kernels.products import fetch


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
