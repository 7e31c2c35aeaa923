"""Settings of the algorithms of reinforcement learning. `learner/rl/algorithms/` implements
them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from common.config.section import Section


class CriticInput(Section):
    """Input of the critic: the query, an interaction before it, and memory if it is wanted."""

    memory: bool = False
    """Whether it also reads the memory that the query is answered with, by attention of its own:
    where rewards are for what was said several turns ago, a critic without memory cannot tell who
    still knows it. Memories are those of the weights that sampled, and no gradient of the critic
    reaches the policy."""
    opening: bool = False
    """Whether, before the last query of a long-term episode, it reads the opening interaction in
    place of the one before: the one that the reward of that answer asks for."""
    max_tokens: int | None = Field(None, ge=8)
    """Longest input: of a longer one the last tokens count, so that the query stays. None: twice
    the longest interaction of the model, which cuts nothing."""


PREVIOUS_INTERACTION = CriticInput()
"""Input of a critic that is told nothing else."""


class PolicyGradient(Section):
    """Settings that every algorithm has."""

    discount: float = Field(0.9, ge=0, le=1)
    """Discount of rewards, per turn."""
    entropy: float = Field(0.0, ge=0)
    """Coefficient of the mean entropy per token, in nats."""
    epochs: int = Field(2, ge=1)
    """Passes over each batch."""
    minibatches: int = Field(2, ge=1)
    """Optimiser steps per pass, each on as large a share of the batch."""
    kl: float = Field(0.02, ge=0)
    """First coefficient of the KL to the reference policy (the weights that MRL started from)."""
    kl_target: float | None = Field(None, gt=0)
    """Nats per answer that the adaptive controller steers to; None: the coefficient stays."""
    kl_horizon: int = Field(10000, ge=1)
    """Episodes; the larger, the slower the adaptive controller."""
    kl_estimator: Literal["k2", "k3"] = "k2"
    """Estimator of the KL in the loss. k2 has the gradient of KL(policy, reference), k3 that of
    KL(reference, policy); k1 would have none."""
    memory_change: float = Field(0.0, ge=0)
    """Coefficient of the mean squared change of memory per write, grown with sqrt(turn)."""
    bptt_turns: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """How many writes before it the gradient of an answer flows back through, as in memory-aware
    training."""
    whiten: bool = True
    """Whether advantages are whitened over the whole batch."""
    doubt: bool = False
    """Divide each advantage by 1 + the standard deviation of its score, in levels, where a discrete
    reward model gave one: less is learnt from what it is unsure of."""

    skip_without_signal: bool = False
    """Whether the policy takes no step on a minibatch in which no answer was better than another,
    so that all advantages are 0: only KL, entropy and weight decay would move it. The critic takes
    its step."""

    @property
    def critic_input(self) -> CriticInput | None:
        """Input of the critic; None where there is none."""
        return None


class ActorCritic(PolicyGradient):
    """Settings of algorithms with a critic."""

    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation, per turn."""
    critic_warmup: int = Field(0, ge=0)
    """Iterations in which only the critic learns. It begins with the mean return of the first
    batch for every query; what it has not learnt yet is noise in advantages, which shakes a policy
    that starts good."""
    critic_learning_rate: float = Field(1e-3, gt=0)
    """Constant rate of the critic's own optimiser."""
    critic: CriticInput = PREVIOUS_INTERACTION
    """Input of the critic."""

    @property
    def critic_input(self) -> CriticInput | None:
        return self.critic


class PPO(ActorCritic):
    """Token-level ratio with one advantage per interaction (Schulman et al. 2017)."""

    clip: float = Field(0.2, gt=0)
    """The ratio of new to old probability counts no further than 1 ± this."""
    stop_kl: float | None = Field(None, gt=0)
    """Nats per token (`ppo/approx_kl_k3`) that the policy may have moved from the one that sampled
    a batch: where a minibatch finds more, the policy takes no further step on that batch. None: it
    takes them all."""
    skip_log_ratio: float | None = Field(None, gt=0)
    """Mean |log ratio| per token (`ppo/log_ratio`) above which the policy takes no step on a
    minibatch; it goes on with the next one, and the critic learns from all. For ratios that explode
    on some episodes: the clip bounds what a token adds, not what many clipped ones leave to KL and
    entropy. None: it takes every step."""
    value_clip: float = Field(0.2, gt=0)
    """The value counts no further than this from the old one, as a share of the width of the range
    that rewards lie in: `rewards.scale` where they are in [0, 1], twice that where symmetric. A
    clipped component is as wide as its clip, a normalised one counts as one standard deviation, one
    of yours without a clip as 1."""


class A2C(ActorCritic):
    """Advantage actor-critic, synchronous (Mnih et al. 2016): no ratio and no clip, so a batch is
    used once by default."""

    epochs: int = Field(1, ge=1)
    """Passes over each batch. Passes after the first are on samples of older weights, which nothing
    corrects."""
    minibatches: int = Field(1, ge=1)
    """Optimiser steps per pass, each on as large a share of the batch."""


class Reinforce(PolicyGradient):
    """REINFORCE with a moving average of returns as baseline (Williams 1992). There is no critic.

    One answer is one action: its loss is the sum over its tokens, and means are over answers. It is
    on-policy, so a batch is used once by default.
    """

    epochs: int = Field(1, ge=1)
    """Passes over each batch. Passes after the first are on samples of older weights, which nothing
    corrects."""
    minibatches: int = Field(1, ge=1)
    """Optimiser steps per pass, each on as large a share of the batch."""
    baseline: Literal["including", "excluding"] = "excluding"
    """Whether the returns of the present batch are part of the baseline they are compared with.
    Including them shrinks the first advantages: those of the first batch are around its own
    mean."""
    baseline_decay: float | None = Field(None, ge=0, lt=1)
    """Weight of the average so far against the mean of a new batch; None: the plain mean of all
    returns so far."""
    whiten: bool = False
    """Whether advantages are whitened over the whole batch, beside the baseline."""
