"""Rewards of turns before an algorithm credits them. In this order: answers without an end, clip,
KL, whitening."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from common.config.algorithms import PolicyGradient
from learner.parallel.group import Group
from learner.rl.advantages import SMALLEST_VARIANCE, mean_and_variance, whiten
from learner.rl.experience import Experience


def shaped_rewards(
    experience: Experience,
    settings: PolicyGradient,
    kl_coefficient: float,
    ended: Callable[[Sequence[int]], bool],
    group: Group,
) -> Experience:
    """The experience with rewards as the settings say. kl_coefficient: what a nat of KL costs.
    ended: whether the policy ended an answer itself. All ranks call it together.

    Where credit is per token, each token has the reward of its KL, the last one the score, too, and
    whitening is over tokens; rewards of turns are their sums before it.
    """
    rewards, scored = experience.rewards, experience.scored
    if settings.no_end_reward is not None or settings.no_end_penalty:
        cut = _unended(experience, ended)
        if settings.no_end_reward is not None:
            rewards = torch.where(cut & scored, settings.no_end_reward, rewards)
        rewards = torch.where(cut & scored, rewards - settings.no_end_penalty, rewards)
    if settings.reward_clip is not None:
        rewards = rewards.clamp(-settings.reward_clip, settings.reward_clip)
    scores = rewards
    if settings.kl_in == "reward":
        rewards = torch.where(scored, rewards - kl_coefficient * sampled_kl(experience), rewards)
    if experience.tokens is not None:
        cost = kl_coefficient if settings.kl_in == "reward" else 0.0
        tokens = _token_rewards(experience, scores, cost)
        if settings.whiten_rewards:
            tokens = _over_their_spread(tokens, experience.scored_tokens, settings, group)
        held = replace(experience.tokens, rewards=tokens)
        return replace(experience, rewards=rewards, tokens=held)
    if settings.whiten_rewards:
        rewards = _over_their_spread(rewards, scored, settings, group)
    return replace(experience, rewards=rewards)


def _over_their_spread(
    rewards: Tensor, scored: Tensor, settings: PolicyGradient, group: Group
) -> Tensor:
    """Rewards over their standard deviation on all ranks; their mean stays."""
    ddof = 0 if settings.population_variance else 1
    _, _, variance = mean_and_variance(rewards, scored, ddof, group.sum)
    if float(variance) <= SMALLEST_VARIANCE:  # rounding must not become a signal
        return rewards
    return whiten(rewards, scored, ddof, shift_mean=False, reduce=group.sum)


def _token_rewards(experience: Experience, scores: Tensor, kl_coefficient: float) -> Tensor:
    """Rewards of single tokens, as `TokenCredit` holds them: of each for its KL, and of the last
    one of an answer the score. Those of answers without a score are 0."""
    assert experience.tokens is not None
    rewards = torch.zeros_like(experience.tokens.values)
    for i, (old, reference) in enumerate(zip(experience.old, experience.reference, strict=True)):
        for k, (log_probs, others) in enumerate(zip(old, reference, strict=True)):
            if not experience.scored[i, k]:
                continue
            sampled = torch.as_tensor(log_probs, dtype=torch.float64, device=others.device)
            found = token_kl_rewards(sampled, others.double(), kl_coefficient)
            found[-1] += scores[i, k]
            rewards[i, k, : len(found)] = found
    return rewards


def token_kl_rewards(log_probs: Tensor, reference: Tensor, coefficient: float) -> Tensor:
    """Reward of each sampled token for its KL to the reference (k1), any shape: positive where the
    reference gives it the greater probability (Ziegler et al. 2019, section 2.2)."""
    return -coefficient * (log_probs - reference)


def sampled_kl(experience: Experience) -> Tensor:
    """Sum of log policy - log reference (k1) over the tokens of each answer, by the weights that
    sampled it: [episodes, actions]."""
    found = torch.zeros_like(experience.rewards)
    for i, (old, reference) in enumerate(zip(experience.old, experience.reference, strict=True)):
        for k, (log_probs, others) in enumerate(zip(old, reference, strict=True)):
            sampled = torch.as_tensor(log_probs, dtype=torch.float64, device=others.device)
            found[i, k] = -token_kl_rewards(sampled, others.double(), 1.0).sum()
    return found


def _unended(experience: Experience, ended: Callable[[Sequence[int]], bool]) -> Tensor:
    """Where an answer was ended by its length limit, or a memory by its budget: [episodes,
    actions]."""
    cut = torch.zeros_like(experience.scored)
    for i, episode in enumerate(experience.episodes):
        for k, action in enumerate(episode.actions):
            cut[i, k] = not ended(action.ids)
    return cut
