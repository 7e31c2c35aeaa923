"""Settings of the algorithms of reinforcement learning. `learner/rl/algorithms/` implements
them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

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


class Mismatch(Section):
    """Correction for answers that the learner, with the very weights that sampled, gives other
    log-probabilities than were recorded: another engine, other kernels, another precision.

    The weight of a token is the ratio of the two probabilities (Yao et al. 2025, truncated
    importance sampling). With a correction, ratios of the update are against the learner's own
    log-probabilities, which costs one pass over each batch.
    """

    correct: Literal["none", "truncate", "mask"] = "none"
    """truncate: weights count up to `limit`. mask: a weight above `limit`, or below 1 / `limit`, is
    0, any other 1. none: the difference is measured, and nothing corrected."""
    level: Literal["token", "answer"] = "token"
    """Whether each token has the ratio of its own, or that of its whole answer."""
    limit: float = Field(2.0, gt=1)
    """Largest weight."""


class PolicyGradient(Section):
    """Settings that every algorithm has."""

    samples: int = Field(1, ge=1)
    """Episodes of each task: they start alike, and answers are drawn apart. `episodes` must be a
    multiple of it."""
    discount: float = Field(0.9, ge=0, le=1)
    """Discount of rewards, per turn."""
    entropy: float = Field(0.0, ge=0)
    """Coefficient of the mean entropy per token, in nats."""
    epochs: int = Field(2, ge=1)
    """Passes over each batch."""
    minibatches: int = Field(2, ge=1)
    """Optimiser steps per pass, each on as large a share of the batch."""
    loss_mean: Literal["tokens", "answer_sums", "answer_means"] = "tokens"
    """Mean that the losses of policy and KL are. tokens: over all tokens, each alike. answer_sums:
    over answers, of the sum over the tokens of each, so that an answer is one action. answer_means:
    over answers, of the mean over the tokens of each, so that a long answer weighs no more than a
    short one."""
    reward_clip: float | None = Field(None, gt=0)
    """Rewards of turns count within ± this, before a KL is taken off them; None: as they are."""
    whiten_rewards: bool = False
    """Whether rewards of turns, less a KL in them, are divided by their standard deviation over the
    batch; their mean stays (Ziegler et al. 2019)."""
    no_end_reward: float | None = None
    """Reward, in place of its own, of an answer that its length limit ended: one without the end
    token of the policy. None: its own."""
    no_end_penalty: float = Field(0.0, ge=0)
    """Taken off the reward of such an answer."""
    kl: float = Field(0.02, ge=0)
    """First coefficient of the KL to the reference policy (the weights that MRL started from)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether the KL is a term of the loss, or is taken off the reward: for each token that was
    sampled log policy - log reference (k1), summed over the answer."""
    kl_target: float | None = Field(None, gt=0)
    """Nats per answer that the adaptive controller steers to; None: the coefficient stays."""
    kl_horizon: int = Field(10000, ge=1)
    """Episodes; the larger, the slower the adaptive controller."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k2"
    """Estimator of the KL in the loss. k1 and k2 have the gradient of KL(policy, reference), k3
    that of KL(reference, policy). k1 needs `kl_correction`: without, its gradient is 0 on
    average."""
    kl_correction: bool = False
    """Whether the KL of each token in the loss is weighted by the ratio of the present policy to
    the one that sampled, so that it is that of the present policy in later passes, too. For k1 the
    gradient goes through the ratio as well."""
    memory_change: float = Field(0.0, ge=0)
    """Coefficient of the mean squared change of memory per write, grown with sqrt(turn)."""
    bptt_turns: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """How many writes before it the gradient of an answer flows back through, as in memory-aware
    training."""
    whiten: bool = True
    """Whether advantages are whitened over the whole batch."""
    whiten_over: Literal["batch", "minibatch"] = "batch"
    """Extent of whitening, on all ranks together: the whole batch, or each minibatch of a
    pass."""
    population_variance: bool = False
    """Whether whitening divides the sum of squared deviations by their count (Ziegler et al. 2019)
    in place of count - 1."""
    doubt: bool = False
    """Divide each advantage by 1 + the standard deviation of its score, in levels, where a discrete
    reward model gave one: less is learnt from what it is unsure of."""
    stop_kl: float | None = Field(None, gt=0)
    """Nats per token (`ppo/approx_kl_k3`) that the policy may have moved from the one that sampled
    a batch: where a minibatch finds more, the policy takes no further step on that batch. None: it
    takes them all."""
    skip_log_ratio: float | None = Field(None, gt=0)
    """Mean |log ratio| per token (`ppo/log_ratio`) above which the policy takes no step on a
    minibatch; it goes on with the next one, and a critic learns from all. For ratios that explode
    on some episodes: a clip bounds what a token adds, not what many clipped ones leave to KL and
    entropy. None: it takes every step."""
    mismatch: Mismatch = Mismatch()
    """Correction where recorded log-probabilities are not those that the learner computes."""
    skip_without_signal: bool = False
    """Whether the policy takes no step on a minibatch in which no answer was better than another,
    so that all advantages are 0: only KL, entropy and weight decay would move it. The critic takes
    its step."""

    @property
    def critic_input(self) -> CriticInput | None:
        """Input of the critic; None where there is none."""
        return None

    @model_validator(mode="after")
    def _has_a_gradient(self) -> Self:
        if self.kl_in == "loss" and self.kl_estimator == "k1" and not self.kl_correction:
            raise ValueError(
                "kl_estimator: k1 in the loss has no gradient on average; set kl_correction: true, "
                "or take k2"
            )
        return self

    @property
    def credits_tokens(self) -> bool:
        """Whether single tokens get credit, which takes values of tokens."""
        return False


class ActorCritic(PolicyGradient):
    """Settings of algorithms with a critic."""

    credit: Literal["answer", "answer_mean", "token"] = "answer"
    """answer: a value for each query, and one advantage for all tokens of its answer. token: a
    value before each token, and an advantage for each: the KL of a token in the reward is its own,
    and the score is that of the last one. answer_mean: a value before each token, and one advantage
    for all of them, against the mean of these values. Only a causal policy gives values of
    tokens."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation, per turn; with `credit: token` per token. It does
    not go on from one answer to the one before: what comes after an answer counts as the value at
    the next query, times `discount`."""
    token_discount: float = Field(1.0, ge=0, le=1)
    """Discount of rewards per token inside an answer, with `credit: token` or `answer_mean`."""
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

    @property
    def credits_tokens(self) -> bool:
        return self.credit != "answer"


class PPO(ActorCritic):
    """Token-level ratio with one advantage per answer, or per token (Schulman et al. 2017)."""

    clip: float = Field(0.2, gt=0)
    """The ratio of new to old probability counts no further than 1 ± this."""
    clip_high: float | None = Field(None, gt=0)
    """Another clip above 1; None: `clip`. A larger one lets rare tokens gain more (clip-higher, Yu
    et al. 2025)."""
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

    It is on-policy, so a batch is used once by default.
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


class Compared(PolicyGradient):
    """Settings of algorithms that compare the episodes of a task with each other. There is no
    critic."""

    samples: int = Field(4, ge=2)
    """Episodes of each task, which are compared: they start alike, and answers are drawn apart.
    `episodes` must be a multiple of it."""
    epochs: int = Field(1, ge=1)
    """Passes over each batch."""
    minibatches: int = Field(1, ge=1)
    """Optimiser steps per pass, each on as large a share of the batch."""
    compare: Literal["turn", "episode"] = "turn"
    """Return that is compared. turn: that from a turn on, with that turn of the others.
    episode: that of the whole episode, which all of its turns are credited with."""
    aggregation: Literal["sum_then_normalise", "normalise_then_sum"] = "sum_then_normalise"
    """How several reward components become one advantage. sum_then_normalise: totals are compared.
    normalise_then_sum: each component is compared by itself, over its standard deviation in the
    group, and the advantages are summed by weight (GDPO, Liu et al. 2026), so that one that varies
    little is not drowned by another; `whiten` is then true unless it is set. A component adds
    nothing to a turn that it applies neither to nor after."""
    incomplete: Literal["fewer", "leave_out"] = "fewer"
    """Rule for a task of which an episode failed or has a turn without a score. fewer: those
    that are left are compared. leave_out: none of it is learnt from. A turn that has nothing to be
    compared with is never learnt from."""
    clip: float = Field(0.2, gt=0)
    """The ratio of new to old probability counts no further than 1 ± this."""
    clip_high: float | None = Field(None, gt=0)
    """Another clip above 1; None: `clip`. A larger one lets rare tokens gain more (clip-higher, Yu
    et al. 2025)."""
    whiten: bool = False
    """Whether advantages are whitened over the whole batch, beside the comparison."""

    @model_validator(mode="before")
    @classmethod
    def _whitens_the_sum(cls, settings: Any) -> Any:
        """The last step of GDPO is whitening."""
        if isinstance(settings, dict) and settings.get("aggregation") == "normalise_then_sum":
            return {"whiten": True} | settings
        return settings

    @model_validator(mode="after")
    def _has_components(self) -> Self:
        """Refuse settings that change totals, which are lost where components are compared."""
        if self.aggregation == "sum_then_normalise":
            return self
        shaped = ("reward_clip", "whiten_rewards", "no_end_reward", "no_end_penalty")
        given = [name for name in shaped if getattr(self, name) not in (None, False, 0.0)]
        given += ["kl_in: reward"] * (self.kl_in == "reward")
        if given:
            raise ValueError(
                f"{given[0]}: changes the sum of the rewards, and aggregation: normalise_then_sum "
                "compares each component; choose one"
            )
        return self


class RLOO(Compared):
    """REINFORCE leave-one-out (Ahmadian et al. 2024): the baseline of an episode is the mean return
    of the others of its task."""

    ratio: Literal["none", "token", "answer"] = "answer"
    """Ratio of new to old probability that corrects later steps on a batch. answer: one for the
    whole answer, so that it is one action; means are over answers then, whatever `loss_mean`.
    token: one for each token, as in PPO. none: plain log-probabilities."""


class GRPO(Compared):
    """Group-relative policy optimisation (Shao et al. 2024): a return less the mean of its task,
    over their standard deviation."""

    loss_mean: Literal["tokens", "answer_sums", "answer_means"] = "answer_means"
    """Mean that the losses of policy and KL are. answer_means is that of the article: over answers,
    of the mean over the tokens of each. tokens: over all tokens, each alike (Yu et al. 2025).
    answer_sums: over answers, of the sum over the tokens of each (but for a constant that of Liu et
    al. 2025)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL in the loss. k1 and k2 have the gradient of KL(policy, reference), k3
    that of KL(reference, policy). k1 needs `kl_correction`: without, its gradient is 0 on
    average."""
    divide_by_std: bool = True
    """Whether advantages are divided by the standard deviation of the task's returns. False: tasks
    that are nearly always or nearly never answered well weigh no more than others (Liu et al.
    2025)."""
    ratio: Literal["token", "answer"] = "token"
    """Whether each token has a ratio of its own, or that of its answer: the geometric mean over its
    tokens (Zheng et al. 2025). Means are over answers then, whatever `loss_mean`."""

    @model_validator(mode="after")
    def _normalises(self) -> Self:
        if self.aggregation == "normalise_then_sum" and not self.divide_by_std:
            raise ValueError(
                "divide_by_std: aggregation: normalise_then_sum divides each component by its "
                "standard deviation; leave it out"
            )
        return self


class Rejection(PolicyGradient):
    """Rejection sampling: the best episodes of a batch are learnt by cross-entropy, as if they were
    examples (Dong et al. 2023). Ties go to the one that comes first in the batch."""

    epochs: int = Field(1, ge=1)
    """Passes over each batch."""
    minibatches: int = Field(1, ge=1)
    """Optimiser steps per pass, each on as large a share of the batch."""
    keep: int | None = Field(None, ge=1)
    """How many are kept, over all ranks; None: the share `keep_share`."""
    keep_share: float = Field(0.5, gt=0, le=1)
    """Share that is kept, rounded down, one at least. Not looked at where `keep` is given."""
    keep_of: Literal["batch", "task"] = "batch"
    """Whether the best of the whole batch are kept, or the best of each task."""
    compare: Literal["turn", "episode"] = "turn"
    """Unit that is kept. turn: single answers, by the return from their turn on. episode: whole
    episodes, by their return."""
    learn_queries: bool = False
    """Whether the cross-entropy is over queries and answers, or answers alone."""
    whiten: bool = False
    """Must be false: there are no advantages to be whitened."""

    @model_validator(mode="after")
    def _chooses(self) -> Self:
        given = [name for name in ("whiten", "doubt") if getattr(self, name)]
        if given:
            raise ValueError(f"{given[0]}: rejection sampling has no advantages; leave it out")
        if self.keep_of == "task" and self.samples == 1:
            raise ValueError(
                "keep_of: the best of each task needs samples above 1: there is one episode a task"
            )
        if self.keep is not None and self.keep_of == "task" and self.keep >= self.samples:
            raise ValueError(f"keep: {self.keep} of {self.samples} samples a task leaves none out")
        return self
