"""Distance to the reference policy: estimators, the two places it can act (reward or loss), and the
controller of its weight.

With samples from the policy and d = log policy - log reference (Schulman 2020, "Approximating KL
divergence"):

| estimator | value | as a loss, its gradient is that of |
|---|---|---|
| k1 = d | unbiased, high variance | nothing: zero on average |
| k2 = d² / 2 | biased, low variance | KL(policy, reference) exactly |
| k3 = exp(-d) - 1 + d | unbiased, never negative | KL(reference, policy) |

These gradients hold for tokens that the current policy sampled. `importance_weighted_kl` corrects
for tokens of an older one.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from learner.rl.losses import MAX_LOG_RATIO, masked_sum

Estimator = Literal["k1", "k2", "k3", "abs"]


def kl_estimate(log_probs: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """Estimate of KL(policy, reference) at each sampled token, in nats; any shape. `abs` is |d|, a
    distance but no estimate of KL."""
    d = log_probs - reference
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * d.square()
    if estimator == "k3":
        return torch.expm1((-d).clamp(max=MAX_LOG_RATIO)) + d
    if estimator == "abs":
        return d.abs()
    raise ValueError(f"no KL estimator {estimator!r}")


def kl_sum(log_probs: Tensor, reference: Tensor, mask: Tensor, estimator: Estimator) -> Tensor:
    """Sum of `kl_estimate` over unmasked tokens, safe against anything in padding."""
    present = mask.bool()
    return kl_estimate(
        torch.where(present, log_probs, 0.0), torch.where(present, reference, 0.0), estimator
    ).sum()


def importance_weighted_kl(
    log_probs: Tensor, old_log_probs: Tensor, reference: Tensor, mask: Tensor
) -> Tensor:
    """Sum over tokens of ratio * (log policy - log reference), with gradient through both factors.

    Its expectation over tokens of the OLD policy, and the gradient of that, are those of KL(policy,
    reference). Only the sampled token is corrected, not the prefix before it.
    """
    present = mask.bool()
    log_probs, old_log_probs, reference = (
        torch.where(present, x, 0.0) for x in (log_probs, old_log_probs, reference)
    )
    ratio = (log_probs - old_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return masked_sum(ratio * (log_probs - reference), present)


def kl_reward(
    log_probs: Tensor,
    reference: Tensor,
    score: Tensor | float,
    coefficient: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Per-token reward -coefficient * k1, with the score on the last unmasked token (Ziegler et al.
    2019).

    log_probs, reference, mask: [..., tokens]; score: [...]. 0 where masked; a row without tokens (a
    padded turn) gets nothing.
    """
    present = torch.ones_like(log_probs, dtype=torch.bool) if mask is None else mask.bool()
    rewards = torch.where(present, -coefficient * (log_probs - reference), 0.0)
    positions = torch.arange(present.shape[-1], device=present.device)
    last = torch.where(present, positions, -1).amax(-1, keepdim=True)
    scores = (
        torch.as_tensor(score, dtype=rewards.dtype, device=rewards.device)
        .expand(rewards.shape[:-1])
        .unsqueeze(-1)
    )
    return rewards + torch.where(positions == last, scores, 0.0)


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
