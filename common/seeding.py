"""Random numbers that depend on what they are for, never on who draws them or when.

`derive` turns (seed, names, numbers) into an independent 64-bit seed. `uniforms` is a counter-based
generator (SplitMix64 finaliser, Steele 2014): value i of a stream is a pure function of (key, i),
so a token's random number is the same in whichever slot, batch or process the episode runs.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def derive(seed: int, *parts: str | int) -> int:
    """A seed below 2**63 for the purpose that `parts` names; different parts give independent
    seeds."""
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def uniforms(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1) for each (key, counter). keys, counters: non-negative int64 [n]."""
    with np.errstate(over="ignore"):
        z = keys.astype(np.uint64) + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
