"""Functions of single numbers and of single rows."""

from __future__ import annotations

from functools import partial

import numpy as np

from rollout.policies.reactive.cpu.compiling import kernel

ZERO, ONE = np.float32(0), np.float32(1)

LOG2_E = np.float32(1.4426950408889634)
LN_2_HIGH, LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
"""ln 2 in two parts, of which the first has so few digits that its product with a small integer is
exact (Cody and Waite 1980)."""
SMALLEST, _LARGEST = np.float32(-87), np.float32(88)
TAYLOR = tuple(np.float32(1 / d) for d in (1, 1, 2, 6, 24, 120, 720, 5040))
"""Coefficients of e^r: for |r| ≤ ln 2 / 2 the series to the seventh power is exact to 2^-26."""
_C2, _C3, _C4, _C5, _C6, _C7 = TAYLOR[2:]


@partial(kernel, fastmath={"contract"})
def exp(x: np.float32) -> np.float32:
    """e^x to 2 units in the last place; 0 below -87, e^88 above 88."""
    bounded = SMALLEST if x < SMALLEST else x
    bounded = _LARGEST if bounded > _LARGEST else bounded
    n = np.floor(bounded * LOG2_E + np.float32(0.5))
    r = bounded - n * LN_2_HIGH
    r = r - n * LN_2_LOW
    series = ONE + r * (ONE + r * (_C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))))
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return ZERO if x < SMALLEST else series * power


@kernel
def largest(row: np.ndarray, count: int) -> np.float32:
    """Largest of the first `count` numbers of a row. Four are compared at a time, since each
    comparison waits for the one before."""
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


@kernel
def rms_norm(x: np.ndarray, weight: np.ndarray, eps: np.float32, out: np.ndarray) -> None:
    rows, width = x.shape
    for r in range(rows):
        squares = ZERO
        for i in range(width):
            squares += x[r, i] * x[r, i]
        scale = ONE / np.sqrt(squares / np.float32(width) + eps)
        for i in range(width):
            out[r, i] = x[r, i] * scale * weight[i]


@kernel
def swiglu(x: np.ndarray, out: np.ndarray) -> None:
    rows, width = out.shape
    for r in range(rows):
        for i in range(width):
            gate = x[r, width + i]
            out[r, i] = x[r, i] * gate / (ONE + exp(-gate))


@kernel
def mean_of_sum(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    """x [rows, width], y [rows, at least width] → out [rows]."""
    rows, width = x.shape
    for r in range(rows):
        total = ZERO
        for i in range(width):
            total += x[r, i] + y[r, i]
        out[r] = total / np.float32(width)
