"""Losses of the policy, the critic and the memory, as SUMS over what is unmasked.

Every loss here is a sum with its count beside it. The caller divides by the count over all ranks: a
mean of per-rank means is another number as soon as ranks hold unequal lengths. What stands in
padding (NaN included) changes neither a value nor a gradient: masked inputs are replaced before any
arithmetic, because 0 * inf in a backward pass is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.models.layers.exact import exact

MAX_LOG_RATIO = 20.0
"""Log ratios are held to ± this before exp: one broken token would otherwise turn the whole
gradient into NaN."""


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """Sums over unmasked tokens; only `loss` carries a gradient."""

    loss: Tensor
    tokens: Tensor
    clipped: Tensor
    """Tokens whose clipped branch is the larger loss: they give no gradient."""


@dataclass(frozen=True, slots=True)
class Moved:
    """How far a policy is from the one that sampled: sums over unmasked tokens, without
    gradient."""

    approx_kl: Tensor
    """Sum of (new - old)² / 2."""
    approx_kl_k3: Tensor
    """Sum of ratio - 1 - (new - old), never negative: KL(old || new) from samples of old."""
    log_ratio: Tensor
    """Sum of |new - old|."""
    max_ratio_deviation: Tensor
    """Largest |ratio - 1|. Not a sum: combine ranks by max. Rounding noise at the first update,
    else rollout and learner disagree."""


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """Sums over unmasked turns; only `loss` carries a gradient."""

    loss: Tensor
    turns: Tensor
    clipped: Tensor


def token_log_probs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token under softmax(logits / temperature). logits: [..., vocab],
    tokens: [...] -> [...].

    Give the temperature that the tokens were sampled at, or the ratio of the first update is not 1.
    """
    scaled = _scaled(logits, temperature)
    return scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - scaled.logsumexp(-1)


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of softmax(logits / temperature) in nats, [..., vocab] -> [...]. Logits of -inf
    (tokens ruled out) are allowed."""
    scaled = _scaled(logits, temperature)
    finite = scaled.masked_fill(scaled == float("-inf"), 0.0)
    return scaled.logsumexp(-1) - (scaled.softmax(-1) * finite).sum(-1)


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    clip_high: float | None = None,
    weights: Tensor | None = None,
) -> PolicyLoss:
    """Clipped surrogate of PPO (Schulman et al. 2017, eq. 7) with one ratio per token, or per
    answer where answers are given in place of tokens.

    log_probs, old_log_probs, mask: [..., tokens]; advantages broadcast against them: [..., 1] gives
    every token of an answer the advantage of its turn. Old log-probs are those of the weights that
    sampled. clip_high: another clip above 1. weights: factor of the loss of each token.
    """
    present, high = mask.bool(), clip if clip_high is None else clip_high
    difference = torch.where(present, log_probs, 0.0) - torch.where(present, old_log_probs, 0.0)
    advantages = torch.where(present, advantages, 0.0)
    ratio = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + high)
    larger = torch.maximum(plain, clipped)
    return PolicyLoss(
        loss=(larger if weights is None else larger * torch.where(present, weights, 0.0)).sum(),
        tokens=present.sum(),
        clipped=(clipped.detach() > plain.detach()).sum(),
    )


def policy_distance(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Moved:
    """How far the policy has moved from the weights that sampled. All inputs: [..., tokens]."""
    present, new = mask.bool(), log_probs.detach()
    step = torch.where(present, new, 0.0) - torch.where(present, old_log_probs, 0.0)
    ratio = step.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return Moved(
        approx_kl=0.5 * step.square().sum(),
        approx_kl_k3=(ratio - 1 - step).sum(),
        log_ratio=step.abs().sum(),
        max_ratio_deviation=(ratio - 1).abs().max() if ratio.numel() else ratio.new_zeros(()),
    )


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> ValueLoss:
    """Half the squared error, or that of the value held within ± clip of the old one, whichever is
    larger. All inputs: [..., turns]."""
    present = mask.bool()
    values, old_values, returns = (
        torch.where(present, x, 0.0) for x in (values, old_values, returns)
    )
    held = old_values + (values - old_values).clamp(-clip, clip)
    plain, clipped = (values - returns).square(), (held - returns).square()
    return ValueLoss(
        loss=0.5 * torch.maximum(plain, clipped).sum(),
        turns=present.sum(),
        clipped=(clipped.detach() > plain.detach()).sum(),
    )


def memory_change_penalty(before: Tensor, after: Tensor, turn: Tensor, mask: Tensor) -> Tensor:
    """Sum over writes of sqrt(turn + 1) * mean squared change of memory.

    before, after: [..., layers, slots, width]; turn (0 for the opening interaction) and mask:
    [...]. Later writes weigh more: they have more to lose.
    """
    present = mask.bool()
    cells = present[..., None, None, None]
    change = torch.where(cells, after, 0.0) - torch.where(cells, before, 0.0)
    weight = torch.where(present, turn, 0).to(change.dtype).add(1).sqrt()
    return (change.square().mean(dim=(-3, -2, -1)) * weight).sum()


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Logits over temperature, in float32 or better."""
    if not temperature > 0:
        raise ValueError(
            f"log-probs need a temperature above 0, not {temperature}: greedy answers have no "
            "distribution to learn from"
        )
    return exact(logits) / temperature
