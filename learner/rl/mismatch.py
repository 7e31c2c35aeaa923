"""Importance weights for answers that were sampled by another distribution than the learner's.

The same weights give other log-probabilities in another engine: other kernels, another precision.
Then the samples are off-policy from the first step on, and the update is biased. The weight of a
token is learner / sampler, truncated or masked, because the ratio of an answer's tokens can be of
any size.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from common.config.algorithms import Mismatch
from learner.parallel.group import Group
from learner.rl.experience import Experience
from learner.rl.losses import MAX_LOG_RATIO


def corrected(
    experience: Experience, recomputed: list[list[Tensor]], settings: Mismatch, group: Group
) -> Experience:
    """The experience with the learner's own log-probs and a weight for each token, and figures of
    them over all ranks, which all call it together. recomputed: by the weights that sampled."""
    weights: list[list[Tensor]] = []
    cut, total, tokens = 0.0, 0.0, 0.0
    for episode, answers in zip(experience.episodes, recomputed, strict=True):
        weights.append([])
        for action, log_probs in zip(episode.actions, answers, strict=True):
            recorded = torch.tensor(action.log_probs).to(log_probs)
            weight, was_cut = importance_weights(log_probs, recorded, settings)
            weights[-1].append(weight)
            if action.reward is not None:
                cut += float(was_cut.sum())
                total += float(weight.sum())
                tokens += len(recorded)
    sums = torch.tensor([cut, total, tokens], dtype=torch.float64, device=group.device)
    cut, total, tokens = group.sum(sums).tolist()
    figures = {
        "mismatch/corrected": cut / max(tokens, 1.0),
        "mismatch/weight": total / max(tokens, 1.0),
    }
    return replace(
        experience,
        recomputed=recomputed,
        weights=weights,
        figures=experience.figures | figures,
    )


def importance_weights(
    learner: Tensor, sampler: Tensor, settings: Mismatch
) -> tuple[Tensor, Tensor]:
    """Weight of each token of one answer, and where it is not the plain ratio (or, masked, where it
    is 0). learner, sampler: log-probs [tokens]."""
    difference = learner - sampler
    if settings.level == "answer":
        difference = difference.sum().expand_as(difference)
    ratio = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if settings.correct == "truncate":
        return ratio.clamp(max=settings.limit), ratio > settings.limit
    outside = (ratio > settings.limit) | (ratio < 1 / settings.limit)
    return (~outside).to(ratio.dtype), outside
