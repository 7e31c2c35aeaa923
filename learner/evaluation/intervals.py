"""Confidence intervals of shares, by drawing whole groups anew.

Turns of a conversation, or pairs of a prompt, are not independent; conversations and prompts are.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


def bootstrap(
    sums: np.ndarray, sizes: np.ndarray, seed: int = 0
) -> tuple[list[float], list[float]]:
    """Ends of the 95 % interval of each row's ratio of sums: the percentile bootstrap (Efron 1979).

    sums: [rows, groups], what each group adds to the numerator; sizes: the same of the denominator,
    none of whose rows is all 0. A draw in which a row has no denominator says nothing and is left
    out.
    """
    groups = sums.shape[1]
    rng = np.random.default_rng(seed)
    times = rng.multinomial(groups, np.full(groups, 1 / groups), RESAMPLES).astype(np.float64)
    with np.errstate(invalid="ignore"):
        ratios = (sums @ times.T) / (sizes @ times.T)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(ratios, [tail, 1 - tail], axis=1)
    return low.tolist(), high.tolist()


def wilson(share: float, trials: int) -> tuple[float, float]:
    """The 95 % score interval (Wilson 1927) of a share of `trials`."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle, spread = share + z * z / (2 * trials), share * (1 - share) / trials
    half = z * math.sqrt(spread + z * z / (4 * trials * trials))
    low, high = (middle - half), (middle + half)
    scale = 1 + z * z / trials
    return (0.0 if share == 0 else low / scale, 1.0 if share == 1 else high / scale)
