"""Distance to the reference policy as a loss, and the controller of its weight.

With samples from the policy and d = log policy - log reference (Schulman 2020, "Approximating KL
divergence"):

| estimator | value | as a loss, its gradient is that of |
|---|---|---|
| k2 = d² / 2 | biased, low variance | KL(policy, reference) exactly |
| k3 = exp(-d) - 1 + d | unbiased, never negative | KL(reference, policy) |

The estimate k1 = d is unbiased and measures (`objective/kl`); its gradient is zero on average. All
of this holds for tokens that the current policy sampled.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from learner.rl.losses import MAX_LOG_RATIO

Estimator = Literal["k2", "k3"]


def kl_estimate(log_probs: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """Estimate of KL(policy, reference) at each sampled token, in nats; any shape."""
    d = log_probs - reference
    if estimator == "k2":
        return 0.5 * d.square()
    return torch.expm1((-d).clamp(max=MAX_LOG_RATIO)) + d


class AdaptiveKL:
    """The KL coefficient, steered so that the measured KL comes to `target` (Ziegler et al. 2019,
    section 2.2).

    Each update multiplies it by 1 + gain * error, with error = KL / target - 1 held to ±0.2. The
    gain is episodes / horizon, or, where `gain` is given, that number for every update as the paper
    writes it (0.1). Without a target the coefficient stays. All ranks must give the same global
    mean KL, else their coefficients part. The coefficient belongs in the checkpoint.
    """

    def __init__(
        self,
        coefficient: float,
        target: float | None,
        horizon: int = 10_000,
        gain: float | None = None,
    ):
        self.coefficient = coefficient
        self.target, self.horizon, self.gain = target, horizon, gain

    def update(self, kl: float, episodes: int) -> float:
        """Take in the mean KL (nats per answer, or whatever `target` counts) of `episodes`
        episodes; the new coefficient."""
        if not math.isfinite(kl):
            raise ValueError(
                f"the measured KL is {kl}: taken in, it would spoil the coefficient for the "
                "rest of the run"
            )
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            gain = episodes / self.horizon if self.gain is None else self.gain
            self.coefficient *= 1 + gain * error
        return self.coefficient
