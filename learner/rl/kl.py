"""Distance to the reference policy, as a loss or in rewards, and the controller of its weight.

With samples from the policy and d = log policy - log reference (Schulman 2020, "Approximating KL
divergence"):

| estimator | value | as a loss, its gradient is that of |
|---|---|---|
| k1 = d | unbiased, high variance | nothing: it is 0 on average |
| k2 = d² / 2 | biased, low variance | KL(policy, reference) exactly |
| k3 = exp(-d) - 1 + d | unbiased, never negative | KL(reference, policy) |

All of this holds for tokens that the current policy sampled. Of tokens that an older one sampled
each is weighted by the ratio of the two: for k2 and k3 by its value, for k1 by the ratio itself, so
that ratio · d has the exact gradient of KL(policy, reference). Only the sampled token is corrected,
not the ones before it.

k1 also measures (`objective/kl`), and is what is taken off rewards.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from learner.rl.losses import MAX_LOG_RATIO

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(
    log_probs: Tensor, reference: Tensor, estimator: Estimator, old: Tensor | None = None
) -> Tensor:
    """Estimate of KL(policy, reference) at each sampled token, in nats; any shape.

    old: log-probs of the policy that sampled, for the weights above; None: without weights.
    """
    if old is not None:
        ratio = (log_probs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        weight = ratio if estimator == "k1" else ratio.detach()
        return weight * kl_estimate(log_probs, reference, estimator)
    d = log_probs - reference
    if estimator == "k1":
        return d
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
