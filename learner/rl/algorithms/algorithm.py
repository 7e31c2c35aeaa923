"""The part of reinforcement learning that an algorithm decides: credit and losses.

The loop (`learner/rl/update.py`) does not know which algorithm it runs. An algorithm is one file
beside this one, one section of settings (`common/config/algorithms.py`) and one line of the table
in `table.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from common.config.algorithms import (
    PREVIOUS_INTERACTION,
    ActorCritic,
    CriticInput,
    PolicyGradient,
)
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.policies.protocol import TokenBatch
from learner.rl.advantages import (
    doubted,
    explained_variance,
    explained_variance_by_turn,
    generalized_advantages,
    mean_and_variance,
    whiten,
)
from learner.rl.experience import Experience
from learner.rl.kl import kl_estimate

SMALLEST_VARIANCE = 1e-12
"""Least variance of rewards that differ: less is rounding."""


@dataclass(frozen=True)
class Needs:
    """Requirements of an algorithm."""

    critic_learning_rate: float | None = None
    """None: no critic is built and no value computed."""
    critic_warmup: int = 0
    """Iterations in which only the critic learns."""
    critic: CriticInput = PREVIOUS_INTERACTION
    """Its input."""
    reference: bool = True
    stop_kl: float | None = None
    """Nats per token by which the policy may have moved from the one that sampled, or its passes
    over a batch stop; None: they do not."""
    skip_log_ratio: float | None = None
    """Mean |log ratio| per token from which on a minibatch is passed over; None: none is."""


class Algorithm(Protocol):
    needs: Needs

    def credit(self, experience: Experience, places: list[int], group: Group) -> Experience:
        """The experience with advantages, returns and figures; all ranks call it together.

        Statistics are over all ranks, so that an advantage does not depend on who holds the
        episode. places: position of each episode in the whole batch.
        """
        ...

    def terms(
        self, batch: TokenBatch, experience: Experience, kl_coefficient: float
    ) -> list[LossTerm]:
        """Losses of the policy as sums with counts. experience: that of the batch's episodes."""
        ...

    def critic_terms(self, values: Tensor, experience: Experience) -> list[LossTerm]:
        """Losses of the critic. values: [answered turns], episode by episode."""
        ...

    def state(self) -> dict[str, Any]:
        """State of the algorithm for a checkpoint; JSON-ready."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None: ...


def finish_advantages(
    advantages: Tensor, experience: Experience, settings: PolicyGradient, group: Group
) -> tuple[Tensor, dict[str, float]]:
    """Advantages with doubt and whitening as the settings say, and their statistics before it.

    Where all rewards of the batch are alike, no answer was better than another, advantages are the
    baseline's errors, and they are 0 here.
    """
    scored = experience.scored
    count, _, spread = mean_and_variance(experience.rewards, scored, reduce=group.sum)
    without_signal = float(count) > 1 and float(spread) <= SMALLEST_VARIANCE
    if without_signal:
        advantages = torch.zeros_like(advantages)
    _, mean, variance = mean_and_variance(advantages, scored, reduce=group.sum)
    figures = {
        "objective/advantage": float(mean),
        "objective/advantage_std": float(variance.sqrt()),
        "objective/without_signal": float(without_signal),
    }
    if settings.doubt:
        advantages = doubted(advantages, experience.reward_stds)
    if settings.whiten:
        advantages = whiten(advantages, scored, reduce=group.sum)
    return advantages, figures


def critic_credit(experience: Experience, settings: ActorCritic, group: Group) -> Experience:
    """Advantages and returns by generalised advantage estimation over the critic's values."""
    scored = experience.scored
    advantages, returns = generalized_advantages(
        experience.rewards,
        experience.values,
        experience.bootstrap,
        settings.discount,
        settings.gae_lambda,
        scored,
    )
    advantages, figures = finish_advantages(advantages, experience, settings, group)
    explained = explained_variance(experience.values, returns, scored, group.sum)
    if explained is not None:
        figures["critic/explained_variance"] = explained
    by_turn = explained_variance_by_turn(experience.values, returns, scored, group.sum)
    for turn, share in by_turn.items():
        figures[f"critic/explained_variance_by_turn{{turn={turn}}}"] = share
    return replace(experience, advantages=advantages, returns=returns, figures=figures)


def value_figures(values: Tensor, experience: Experience) -> list[LossTerm]:
    """Mean value and mean return, measured only. values: [answered turns], episode by episode."""
    returns, scored = (x[experience.present] for x in (experience.returns, experience.scored))
    turns = float(scored.sum())
    seen = torch.where(scored, values.detach(), 0.0).sum()
    return [
        LossTerm("critic/values", seen, turns, 0.0),
        LossTerm("critic/returns", torch.where(scored, returns, 0.0).sum(), turns, 0.0),
    ]


def score_function_term(name: str, batch: TokenBatch, experience: Experience) -> LossTerm:
    """Minus the advantage times the log-probability (Williams 1992), over the tokens of scored
    answers."""
    advantages, scored = batch.spread(experience.advantages), batch.spread(experience.scored)
    loss = torch.where(scored, -advantages * batch.log_probs, 0.0).sum()
    return LossTerm(name, loss, float(scored.sum()))


def penalty_terms(
    batch: TokenBatch, experience: Experience, settings: PolicyGradient, kl_coefficient: float
) -> list[LossTerm]:
    """KL to the reference and entropy, over the tokens of scored answers."""
    scored = batch.spread(experience.scored)
    reference = batch.flat(experience.reference)
    distance = kl_estimate(batch.log_probs, reference, settings.kl_estimator)
    tokens = float(scored.sum())
    return [
        LossTerm("ppo/loss_kl", torch.where(scored, distance, 0.0).sum(), tokens, kl_coefficient),
        LossTerm(
            "objective/entropy",
            torch.where(scored, batch.entropy, 0.0).sum(),
            tokens,
            -settings.entropy,
        ),
    ]
