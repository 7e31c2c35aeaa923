"""Sampling from logits."""

from __future__ import annotations

import numpy as np

from common.compiling import kernel
from common.models.kernels.elementary import ZERO, exp, largest

_BLOCK = 64


@kernel
def draw(
    logits: np.ndarray, uniforms: np.ndarray, tokens: np.ndarray, log_probs: np.ndarray
) -> None:
    rows, vocabulary = logits.shape
    blocks = -(-vocabulary // _BLOCK)
    ends = np.empty(blocks, np.float64)
    for r in range(rows):
        top = largest(logits[r], vocabulary)
        total = 0.0
        for block in range(blocks):
            part = ZERO
            for i in range(block * _BLOCK, min(vocabulary, (block + 1) * _BLOCK)):
                part += exp(logits[r, i] - top)
            total += float(part)
            ends[block] = total
        target = uniforms[r] * total
        block = 0
        while block < blocks - 1 and not ends[block] > target:
            block += 1
        passed = ends[block - 1] if block else 0.0
        # Rounding may put the target a hair past the end of its block: then it is the last token
        # there that has any weight.
        token = block * _BLOCK
        for i in range(block * _BLOCK, min(vocabulary, (block + 1) * _BLOCK)):
            weight = exp(logits[r, i] - top)
            if weight > ZERO:
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
        top = largest(logits[r], vocabulary)
        total = 0.0
        for start in range(0, vocabulary, _BLOCK):
            part = ZERO
            for i in range(start, min(vocabulary, start + _BLOCK)):
                part += exp(logits[r, i] - top)
            total += float(part)
        out[r] = np.float64(logits[r, tokens[r]]) - np.float64(top) - np.log(total)
