"""Losses of reward models. Each gives one value per pair or prompt, not yet averaged: who calls
knows the count over all ranks.

Scalar rewards: Bradley and Terry 1952, with a margin and with centring (Eisenstein 2023, arXiv
2312.09244, eq. 2). Discrete scores 1…K: the probability that a draw of the better answer's level
lies above one of the worse, ties left out.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-8
"""Added to a probability before its logarithm: two point masses on one level have a win probability
of 0."""


def bradley_terry_loss(better: Tensor, worse: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log σ(better - worse - margin), [pairs]."""
    return F.softplus(-(better - worse - margin))


def centering_penalty(better: Tensor, worse: Tensor) -> Tensor:
    """(better + worse)², [pairs]: comparisons leave the level of rewards open, this keeps it near
    0."""
    return (better + worse) ** 2


def ranking_pairs(answers: int) -> tuple[Tensor, Tensor]:
    """Indices (better, worse) of all K(K-1)/2 pairs of answers that stand from best to worst: int64
    [pairs] each."""
    better, worse = zip(*itertools.combinations(range(answers), 2), strict=True)
    return torch.tensor(better), torch.tensor(worse)


def ranking_loss(rewards: Tensor) -> Tensor:
    """Mean Bradley–Terry loss over all pairs of one prompt's answers (Ouyang 2022, eq. 1). rewards
    [answers], best first → scalar."""
    better, worse = ranking_pairs(len(rewards))
    return bradley_terry_loss(rewards[better], rewards[worse]).mean()


def choice_loss(rewards: Tensor, best: int = 0) -> Tensor:
    """-log softmax of the chosen among all answers of a prompt (Ziegler 2019, eq. 1). rewards
    [answers] → scalar."""
    return torch.logsumexp(rewards, 0) - rewards[best]


def win_probability(better: Tensor, worse: Tensor) -> Tensor:
    """Σ_{i>j} p_better(i) · p_worse(j), [pairs]. better, worse: logits of the levels [pairs,
    levels]."""
    below = torch.softmax(worse, -1).cumsum(-1)[..., :-1]
    return (torch.softmax(better, -1)[..., 1:] * below).sum(-1)


def discrete_loss(better: Tensor, worse: Tensor) -> Tensor:
    """-log of `win_probability`, [pairs]. A constant answer can do no better than -log((K - 1) /
    2K): 0.7985 with ten levels."""
    return -torch.log(win_probability(better, worse) + EPSILON)
