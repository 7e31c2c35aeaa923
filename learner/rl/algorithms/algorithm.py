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
    SMALLEST_VARIANCE,
    answer_advantages,
    doubted,
    explained_variance,
    explained_variance_by_turn,
    generalized_advantages,
    mean_and_variance,
    token_advantages,
    whiten,
)
from learner.rl.experience import Experience, TokenCredit


@dataclass(frozen=True)
class Needs:
    """Requirements of an algorithm."""

    samples: int = 1
    """Episodes of each task."""
    critic_learning_rate: float | None = None
    """None: no critic is built and no value computed."""
    critic_warmup: int = 0
    """Iterations in which only the critic learns."""
    critic: CriticInput = PREVIOUS_INTERACTION
    """Its input."""
    values_of_tokens: bool = False
    """Whether the critic is one of tokens."""
    reference: bool = True
    queries: bool = False
    """Whether `terms` needs the log-probabilities of queries (`TokenBatch.queries`)."""


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
        """Losses of the critic. values: as `Experience.valued` has them."""
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
    return _finished(
        advantages, experience.scored, experience.reward_stds, experience, settings, group
    )


def _finished(
    advantages: Tensor,
    scored: Tensor,
    stds: Tensor,
    experience: Experience,
    settings: PolicyGradient,
    group: Group,
) -> tuple[Tensor, dict[str, float]]:
    """The same for advantages of turns or of tokens. scored, stds: as the advantages."""
    count, _, spread = mean_and_variance(experience.rewards, experience.rewarded, reduce=group.sum)
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
        advantages = doubted(advantages, stds)
    if settings.whiten and settings.whiten_over == "batch":
        advantages = whitened(advantages, scored, settings, group)
    return advantages, figures


def whitened(advantages: Tensor, scored: Tensor, settings: PolicyGradient, group: Group) -> Tensor:
    """Advantages of the scored turns, or tokens, of all ranks, whitened. All ranks call it
    together."""
    ddof = 0 if settings.population_variance else 1
    return whiten(advantages, scored, ddof, reduce=group.sum)


def whitened_experience(
    experience: Experience, settings: PolicyGradient, group: Group
) -> Experience:
    """The experience with its advantages whitened, whichever credit they are of. All ranks call it
    together."""
    if experience.tokens is None:
        fresh = whitened(experience.advantages, experience.scored, settings, group)
        return replace(experience, advantages=fresh)
    held = experience.tokens
    fresh = whitened(held.advantages, experience.scored_tokens, settings, group)
    return replace(experience, tokens=replace(held, advantages=fresh))


def critic_needs(settings: ActorCritic) -> Needs:
    """Requirements of an algorithm with a critic."""
    return Needs(
        settings.samples,
        settings.critic_learning_rate,
        settings.critic_warmup,
        settings.critic,
        values_of_tokens=settings.credits_tokens,
    )


def critic_credit(experience: Experience, settings: ActorCritic, group: Group) -> Experience:
    """Advantages and returns by generalised advantage estimation over the critic's values."""
    if experience.tokens is not None:
        credited = _token_credit(experience, experience.tokens, settings, group)
    else:
        scored = experience.scored
        advantages, returns = generalized_advantages(
            experience.rewards,
            experience.values,
            experience.bootstrap,
            experience.discounts(settings.discount),
            settings.gae_lambda,
            scored,
        )
        advantages, figures = finish_advantages(advantages, experience, settings, group)
        credited = replace(experience, advantages=advantages, returns=returns, figures=figures)
    return replace(credited, figures=credited.figures | _explained(credited, group))


def _token_credit(
    experience: Experience, held: TokenCredit, settings: ActorCritic, group: Group
) -> Experience:
    """Advantages and returns where the critic values tokens: one of each token, or one of each
    answer that its tokens share."""
    scored = experience.scored_tokens
    credit = token_advantages if settings.credit == "token" else answer_advantages
    advantages, returns = credit(
        held.rewards,
        held.values,
        experience.bootstrap,
        (experience.discounts(settings.discount), settings.token_discount),
        settings.gae_lambda,
        scored,
    )
    stds = experience.reward_stds[..., None].expand_as(advantages)
    advantages, figures = _finished(advantages, scored, stds, experience, settings, group)
    return replace(
        experience,
        advantages=advantages.sum(-1) / held.present.sum(-1).clamp(min=1),
        returns=returns[..., 0],
        tokens=replace(held, advantages=advantages, returns=returns),
        figures=figures,
    )


def _explained(experience: Experience, group: Group) -> dict[str, float]:
    """How much of the returns the critic explains: of all that it gives a value, and by turn."""
    figures = {}
    explained = explained_variance(*experience.valued, group.sum)
    if explained is not None:
        figures["critic/explained_variance"] = explained
    values, returns, scored = (
        experience.of_answers(each)
        for each in (experience.values, experience.returns, experience.rewarded)
    )
    by_turn = explained_variance_by_turn(values, returns, scored, group.sum)
    for turn, share in by_turn.items():
        figures[f"critic/explained_variance_by_turn{{turn={turn}}}"] = share
    return figures


def value_figures(values: Tensor, experience: Experience) -> list[LossTerm]:
    """Mean value and mean return, measured only. values: as `Experience.valued` has them."""
    _, returns, scored = experience.valued
    turns = float(scored.sum())
    seen = torch.where(scored, values.detach(), 0.0).sum()
    return [
        LossTerm("critic/values", seen, turns, 0.0),
        LossTerm("critic/returns", torch.where(scored, returns, 0.0).sum(), turns, 0.0),
    ]
