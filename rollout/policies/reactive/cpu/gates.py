"""How old and new slots of memory are mixed: residual gates and the delta rule."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rollout.policies.reactive.cpu.compiling import kernel
from rollout.policies.reactive.cpu.elementary import ONE, ZERO, exp, mean_of_sum
from rollout.policies.reactive.cpu.products import Packed, linear_of


class GateWeights(NamedTuple):
    """A residual gate: `most` · sigmoid(`most` · before) of what is new, and the rest of `most` of
    what was. `before` is weight · status + bias, or, where that has features, a map of old and new
    contents. With `heads`, it is a delta write."""

    weight: np.ndarray
    """[1 or slots, slots], or [1 or slots, 0] where the share depends on no status."""
    bias: np.ndarray
    """[1 or slots]."""
    contents: Packed
    """[2 · width → width], or of no features; for a delta write [width → heads + head_dim + 1]."""
    heads: int
    """Rows of a slot that a delta write takes it as; 0: it is a gate."""
    eps: np.float32
    most: np.float32
    stretch: np.float32
    """s: a share is (1 + 2s) · itself - s, cut off at 0 and `most`."""


@kernel
def _share(before: np.float32, most: np.float32, stretch: np.float32) -> np.float32:
    share = most / (ONE + exp(-most * before))
    if stretch == ZERO:
        return share
    share = (ONE + stretch + stretch) * share - stretch
    # Written so that what is not a number stays so.
    if share < ZERO:
        return ZERO
    if share > most:
        return most
    return share


@kernel
def _gate_numbers(old: np.ndarray, new: np.ndarray, weights: GateWeights, out: np.ndarray) -> None:
    """As `gate`, by the contents of slots."""
    slots, width = old.shape
    contents = np.zeros((-(-slots // 4) * 4, 2 * width), np.float32)
    for s in range(slots):
        for i in range(width):
            contents[s, i] = old[s, i]
            contents[s, width + i] = new[s, i]
    before = linear_of(contents, weights.contents)
    for s in range(slots):
        for i in range(width):
            share = _share(before[s, i], weights.most, weights.stretch)
            out[s, i] = share * new[s, i] + (weights.most - share) * old[s, i]


@kernel
def _write_delta(old: np.ndarray, new: np.ndarray, weights: GateWeights, out: np.ndarray) -> None:
    """As `gate`, by the delta rule (common/models/reactive/memory.py)."""
    slots, width = old.shape
    heads, eps = weights.heads, weights.eps
    size = width // heads
    contents = np.zeros((-(-slots // 4) * 4, width), np.float32)
    for s in range(slots):
        for i in range(width):
            contents[s, i] = new[s, i]
    parts = linear_of(contents, weights.contents)
    for s in range(slots):
        key, value = parts[s, :heads], parts[s, heads : heads + size]
        length = np.sqrt((key * key).sum())
        # Written so that what is not a number stays so.
        if length < eps:
            length = eps
        key /= length
        value /= np.sqrt((value * value).sum() / np.float32(size) + eps)
        share = _share(parts[s, heads + size], weights.most, weights.stretch)
        total = ZERO
        for d in range(size):
            held = ZERO
            for h in range(heads):
                held += key[h] * old[s, h * size + d]
            change = share * (value[d] - held)
            for h in range(heads):
                number = old[s, h * size + d] + key[h] * change
                out[s, h * size + d] = number
                total += number * number
        root = np.sqrt(total / np.float32(width))
        if root < ONE:
            root = ONE
        for i in range(width):
            out[s, i] /= root


@kernel
def gate(old: np.ndarray, new: np.ndarray, weights: GateWeights, out: np.ndarray) -> None:
    """Old and new slots [slots, width] mixed; new and out may have more rows, out may be old. Where
    a share depends on statuses, a slot that is not finite makes all of its memory so."""
    if weights.heads:
        _write_delta(old, new, weights, out)
        return
    if weights.contents.panels.shape[1]:
        _gate_numbers(old, new, weights, out)
        return
    slots, width = old.shape
    gates, statuses = weights.weight.shape
    status = np.empty(statuses, np.float32)
    if statuses:
        mean_of_sum(old, new, status)
    share = ZERO
    for s in range(slots):
        if s < gates:
            before = weights.bias[s]
            for other in range(statuses):
                before += weights.weight[s, other] * status[other]
            share = _share(before, weights.most, weights.stretch)
        kept = weights.most - share
        for i in range(width):
            out[s, i] = share * new[s, i] + kept * old[s, i]
