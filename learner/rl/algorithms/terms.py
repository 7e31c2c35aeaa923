"""Losses of a policy over the tokens of scored answers, which algorithms are put together from.
What a policy wrote to a text memory counts as an answer here.

Each is a sum with a count (`LossTerm`). What the mean is over follows from `loss_mean` of the
settings; `Experience.weights`, where samples were of another distribution than the learner's, are
factors of the loss of the policy alone.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from common.config.algorithms import PolicyGradient
from learner.parallel.optimizer import LossTerm
from learner.policies.protocol import TokenBatch
from learner.rl.experience import Experience
from learner.rl.kl import kl_estimate
from learner.rl.losses import policy_distance, policy_loss

LossMean = Literal["tokens", "answer_sums", "answer_means"]
Ratio = Literal["token", "answer", "answer_mean"]
"""token: one for each token. answer: one for each answer, the product over its tokens. answer_mean:
their geometric mean."""


def token_shares(
    batch: TokenBatch, experience: Experience, mean: LossMean
) -> tuple[Tensor | float, float]:
    """Factor of each token's loss, [tokens], and the count that the sum is divided by over all
    ranks."""
    if mean == "tokens":
        return 1.0, float(batch.spread(experience.scored).sum())
    answers = float(batch.per_action(experience.scored).sum())
    if mean == "answer_sums":
        return 1.0, answers
    lengths = batch.lengths.to(batch.log_probs.dtype)
    return torch.repeat_interleave(1.0 / lengths, batch.lengths), answers


def corrections(batch: TokenBatch, experience: Experience) -> Tensor:
    """Factor of each token's loss of the policy for a mismatch, [tokens]."""
    if experience.weights is None:
        return torch.ones_like(batch.log_probs.detach())
    return batch.flat(experience.weights).to(batch.log_probs.dtype)


def advantages_of(batch: TokenBatch, experience: Experience) -> Tensor:
    """Advantage of each token, [tokens]: its own, or that of its answer."""
    if experience.tokens is None:
        return batch.spread(experience.advantages)
    return batch.of_tokens(experience.tokens.advantages)


def score_function_term(
    name: str, batch: TokenBatch, experience: Experience, settings: PolicyGradient
) -> LossTerm:
    """Minus the advantage times the log-probability (Williams 1992), over the tokens of scored
    answers."""
    advantages, scored = advantages_of(batch, experience), batch.spread(experience.scored)
    share, count = token_shares(batch, experience, settings.loss_mean)
    loss = torch.where(scored, -advantages * batch.log_probs, 0.0)
    return LossTerm(name, (loss * share * corrections(batch, experience)).sum(), count)


def surrogate_terms(
    name: str,
    batch: TokenBatch,
    experience: Experience,
    mean: LossMean,
    clip: tuple[float, float | None],
    ratio: Ratio = "token",
) -> list[LossTerm]:
    """The clipped surrogate and the share of ratios that are clipped. clip: below 1 and above, as
    `policy_loss` takes them.

    With a ratio per answer the mean is over answers, whatever `mean`.
    """
    old, weights = batch.flat(experience.old), corrections(batch, experience)
    if ratio == "token":
        new = batch.log_probs
        share, count = token_shares(batch, experience, mean)
        weights = weights * share
        advantages, scored = advantages_of(batch, experience), batch.spread(experience.scored)
    else:
        lengths = batch.lengths.to(batch.log_probs.dtype)
        size = lengths if ratio == "answer_mean" else torch.ones_like(lengths)
        new, old = batch.totals(batch.log_probs) / size, batch.totals(old) / size
        weights = batch.totals(weights) / lengths
        advantages, scored = (
            batch.per_action(each) for each in (experience.advantages, experience.scored)
        )
        count = float(scored.sum())
    loss = policy_loss(new, old, advantages, scored, *clip, weights=weights)
    items = float(loss.tokens)
    return [
        LossTerm(name, loss.loss, count),
        LossTerm("ppo/clip_fraction", loss.clipped.float(), items, 0.0),
    ]


def penalty_terms(
    batch: TokenBatch, experience: Experience, settings: PolicyGradient, kl_coefficient: float
) -> list[LossTerm]:
    """KL to the reference and entropy, and, measured only, how far the policy is from the one that
    sampled."""
    scored, old = batch.spread(experience.scored), batch.flat(experience.old)
    distance = kl_estimate(
        batch.log_probs,
        batch.flat(experience.reference),
        settings.kl_estimator,
        old if settings.kl_correction else None,
    )
    share, count = token_shares(batch, experience, settings.loss_mean)
    kl = (torch.where(scored, distance, 0.0) * share).sum()
    tokens = float(scored.sum())
    moved = policy_distance(batch.log_probs, old, scored)
    return [
        LossTerm("ppo/loss_kl", kl, count, kl_coefficient),
        LossTerm(
            "objective/entropy",
            torch.where(scored, batch.entropy, 0.0).sum(),
            tokens,
            -settings.entropy,
        ),
        LossTerm("ppo/log_ratio", moved.log_ratio, tokens, 0.0),
        LossTerm("ppo/approx_kl", moved.approx_kl, tokens, 0.0),
        LossTerm("ppo/approx_kl_k3", moved.approx_kl_k3, tokens, 0.0),
    ]
