"""Every metric of engram: its name, unit, labels, how shards are combined, and what it is counted
per.

The one table that the recorder, `metrics.jsonl`, Prometheus, the report and the dashboards agree
on. A metric without a denominator in words cannot be read: 0.3 of what? Names follow the RLHF
lineage (objective/kl, ppo/loss_policy, …).

What stands here is recorded somewhere; tests hold it to that. Rewards are counted in two cohorts:
of `all` episodes that were scored, and of those `trained` on; leaving out bad ones makes the second
look better than the policy is. All else that learner ranks say of episodes is of the trained ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Type = Literal["counter", "gauge", "histogram"]
Reduction = Literal["sum", "mean", "max", "last"]
COHORTS = ("all", "trained")

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
_VALUES = (-5, -2, -1, -0.5, -0.01, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1, 2, 5)
"""Of rewards: mostly in [0, 1]. The narrow buckets below 0 and 1 keep the ends, where many values
lie, apart from what is near them."""
_TURNS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the registry."""

    name: str
    type: Type
    unit: str
    labels: tuple[str, ...]
    """Names of its labels. `cohort` may be left out where it is "all"; every other must be
    given."""
    reduction: Reduction
    """How two observations become one. Counters and rates add; a mean is weighted by the amount of
    its denominator."""
    denominator: str
    """What it is per, in words; for a counter, what one count is."""
    help: str
    better: Literal["lower", "higher"] | None = None
    """Which end is good; None where neither is."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets; one without bound is added."""


def _counter(
    name: str, unit: str, denominator: str, help_: str, labels: tuple[str, ...] = ()
) -> Metric:
    return Metric(name, "counter", unit, labels, "sum", denominator, help_)


def _mean(
    name: str,
    unit: str,
    denominator: str,
    help_: str,
    labels: tuple[str, ...] = (),
    better: Literal["lower", "higher"] | None = None,
) -> Metric:
    return Metric(name, "gauge", unit, labels, "mean", denominator, help_, better)


def _gauge(
    name: str,
    unit: str,
    reduction: Reduction,
    denominator: str,
    help_: str,
    labels: tuple[str, ...] = (),
    better: Literal["lower", "higher"] | None = None,
) -> Metric:
    return Metric(name, "gauge", unit, labels, reduction, denominator, help_, better)


def _histogram(
    name: str,
    unit: str,
    buckets: tuple[float, ...],
    denominator: str,
    help_: str,
    labels: tuple[str, ...] = (),
) -> Metric:
    return Metric(name, "histogram", unit, labels, "mean", denominator, help_, None, buckets)


def _table(metrics: Iterable[Metric]) -> dict[str, Metric]:
    table: dict[str, Metric] = {}
    for metric in metrics:
        if metric.name in table:
            raise ValueError(f"metric {metric.name} stands twice in the registry")
        table[metric.name] = metric
    return table


_TRAIN = [
    _mean(
        "train/loss_lm",
        "nats",
        "predicted tokens",
        "Next-token loss of the decoder",
        better="lower",
    ),
    _mean(
        "train/loss_masked_lm",
        "nats",
        "masked tokens",
        "Masked-token loss of the encoder",
        better="lower",
    ),
    _mean(
        "train/loss_router",
        "1",
        "optimiser steps",
        "Load-balancing loss of mixture-of-experts layers",
        better="lower",
    ),
    _mean(
        "train/accuracy_lm",
        "fraction",
        "predicted tokens",
        "Share of tokens the decoder ranks first",
        better="higher",
    ),
    _mean(
        "train/accuracy_masked_lm",
        "fraction",
        "masked tokens",
        "Share of masked tokens the encoder ranks first",
        better="higher",
    ),
    _mean(
        "train/loss_preference",
        "nats",
        "prompts",
        "Loss of the reward model on ranked answers",
        better="lower",
    ),
    _mean(
        "train/loss_centering",
        "reward^2",
        "prompts",
        "Square of the sum of the rewards of two answers",
        better="lower",
    ),
    _mean(
        "train/accuracy_preference",
        "fraction",
        "prompts",
        "Share of pairs whose better answer has the higher reward",
        better="higher",
    ),
    _mean(
        "train/reward_margin",
        "reward",
        "prompts",
        "Reward of the better answer less that of the worse",
        better="higher",
    ),
    _mean(
        "train/memory_cosine",
        "cosine",
        "memory writes",
        "Cosine of the written memory and its label",
        better="higher",
    ),
    _mean("train/gradient_norm", "1", "optimiser steps", "Gradient norm before clipping"),
    _mean(
        "train/gradient_clipped",
        "fraction",
        "optimiser steps",
        "Share of steps whose gradient was clipped",
    ),
    _gauge(
        "train/learning_rate",
        "1",
        "last",
        "this moment",
        "Learning rate of the decoder, and of what has none of its own",
    ),
    _gauge("train/learning_rate_critic", "1", "last", "this moment", "Learning rate of the critic"),
    _counter(
        "train/tokens", "tokens", "one token trained on, padding left out", "Tokens trained on"
    ),
    _counter(
        "train/sequences",
        "sequences",
        "one sequence or conversation trained on",
        "Sequences trained on",
    ),
    _counter(
        "train/steps", "steps", "one optimiser step of the whole learner group", "Optimiser steps"
    ),
    _gauge(
        "train/tokens_per_second",
        "tokens/s",
        "sum",
        "seconds of training, summed over ranks",
        "Training throughput",
        better="higher",
    ),
]

_EVAL = [
    _mean(
        "eval/preference_accuracy",
        "fraction",
        "held-out pairs",
        "Share whose better answer has the higher reward",
        better="higher",
    ),
    _mean(
        "eval/preference_accuracy_low",
        "fraction",
        "held-out pairs",
        "Lower end of its 95 % interval",
        better="higher",
    ),
    _mean(
        "eval/preference_accuracy_high",
        "fraction",
        "held-out pairs",
        "Upper end of its 95 % interval",
        better="higher",
    ),
    _mean(
        "eval/preference_loss",
        "nats",
        "held-out pairs",
        "-log of the probability that the better answer wins",
        better="lower",
    ),
    _mean(
        "eval/preference_calibration_error",
        "fraction",
        "held-out pairs",
        "Distance of confidence and accuracy, in bins",
        better="lower",
    ),
    _mean(
        "eval/scores",
        "reward",
        "scored turns of held-out conversations",
        "Weighted reward",
        better="higher",
    ),
    _mean(
        "eval/reward",
        "reward",
        "scored turns of held-out conversations",
        "Raw reward component",
        ("component",),
        "higher",
    ),
    _mean(
        "eval/recall",
        "fraction",
        "facts asked for in held-out conversations, at this distance in interactions",
        "Share recalled; memory is kept, or erased before the question; see also summary.json",
        ("memory", "distance"),
        "higher",
    ),
    _mean(
        "eval/exact",
        "fraction",
        "questions of held-out conversations, at this distance",
        "Share whose answer names every value asked for and no wrong one",
        ("distance",),
        "higher",
    ),
    _mean(
        "eval/precision",
        "fraction",
        "right and wrong values that answers to held-out questions name",
        "Share of right ones",
        ("distance",),
        "higher",
    ),
    _mean(
        "eval/changed",
        "fraction",
        "facts that replaced an earlier value, asked for in held-out conversations",
        "Share recalled",
        ("distance",),
        "higher",
    ),
    _mean(
        "eval/outdated",
        "fraction",
        "held-out questions for facts that replaced an earlier value",
        "Share whose answer names a replaced value",
        ("distance",),
        "lower",
    ),
    _mean(
        "eval/by_order",
        "fraction",
        "facts asked for in held-out conversations that were told in this place among all told, "
        "from 1",
        "Share recalled",
        ("order",),
        "higher",
    ),
]

_RL = [
    _mean("objective/scores", "reward", "scored turns", "Weighted reward", better="higher"),
    _mean(
        "objective/return",
        "reward",
        "episodes without a failed turn",
        "Undiscounted sum of rewards",
        better="higher",
    ),
    _mean(
        "objective/kl",
        "nats",
        "answers",
        "KL to the reference policy, summed over the answer's tokens (k1)",
        better="lower",
    ),
    _mean(
        "objective/kl_per_token",
        "nats",
        "generated tokens",
        "KL to the reference policy (k1) as sampled",
        better="lower",
    ),
    _mean("objective/entropy", "nats", "generated tokens", "Entropy of the policy"),
    _mean("objective/advantage", "reward", "turns", "Advantage before whitening"),
    _gauge(
        "objective/advantage_std",
        "reward",
        "last",
        "turns of the whole batch",
        "Spread of advantages before whitening",
    ),
    _mean("ppo/loss_policy", "reward", "generated tokens", "Clipped policy loss"),
    _mean("ppo/loss_value", "reward^2", "turns", "Clipped value loss", better="lower"),
    _mean(
        "ppo/loss_kl", "nats", "generated tokens", "KL loss before its coefficient", better="lower"
    ),
    _mean(
        "ppo/clip_fraction",
        "fraction",
        "generated tokens",
        "Share whose clipped branch was the larger loss",
    ),
    _mean(
        "ppo/value_clip_fraction",
        "fraction",
        "turns",
        "Share whose clipped value loss was the larger",
    ),
    _mean(
        "ppo/approx_kl",
        "nats",
        "generated tokens",
        "KL of new and sampling policy: half the squared log ratio",
        better="lower",
    ),
    _mean("ppo/approx_kl_k3", "nats", "generated tokens", "The same, unbiased", better="lower"),
    _gauge(
        "ppo/ratio_max_deviation_first",
        "1",
        "max",
        "generated tokens of the first update of an iteration",
        "Largest |ratio - 1| while the weights are still those that sampled: rounding, unless "
        "learner and rollout disagree",
        better="lower",
    ),
    _gauge(
        "ppo/log_prob_max_difference",
        "nats",
        "max",
        "generated tokens of the first update of an iteration",
        "Largest |recomputed - recorded log-probability|",
        better="lower",
    ),
    _gauge(
        "ppo/explained_variance",
        "fraction",
        "last",
        "turns of the whole batch",
        "What the critic explains of returns",
        better="higher",
    ),
    _mean("ppo/values", "reward", "turns", "Value that the critic expected"),
    _mean("ppo/returns", "reward", "turns", "Return that the critic is taught"),
    _gauge(
        "ppo/kl_coefficient", "1", "last", "this moment", "Weight of the KL to the reference policy"
    ),
    _mean(
        "reinforce/loss_policy",
        "reward",
        "generated tokens",
        "Policy loss of REINFORCE: -advantage times log-probability",
    ),
    _gauge(
        "reinforce/baseline",
        "reward",
        "last",
        "turns of all iterations so far",
        "Average return that new returns are compared with",
    ),
    _mean(
        "ppo/gradient_norm_critic",
        "1",
        "optimiser steps of the critic",
        "Gradient norm of the critic before clipping",
    ),
]

_MEMORY = [
    _mean("memory/change", "1", "memory writes", "Mean squared change of memory by a write"),
    _mean(
        "ppo/loss_memory_change",
        "1",
        "memory writes",
        "Mean squared change of memory by a write, times sqrt(turn)",
    ),
    _mean("memory/resets", "fraction", "episodes", "Share started from fresh memory"),
]

_REWARD = [
    _mean(
        "reward/component",
        "reward",
        "scored turns",
        "Raw reward component, before its weight",
        ("component", "cohort"),
        "higher",
    ),
    # Beside the mean: where values fall below 0 the sum of a histogram is no counter, and
    # Prometheus has no mean of it.
    _histogram(
        "reward/value",
        "reward",
        _VALUES,
        "scored turns to which the component applies",
        "Distribution of a raw reward component",
        ("component",),
    ),
    _mean(
        "reward/saturated",
        "fraction",
        "scored turns to which the component applies",
        "Share at an end of the component's range: its clip's, or 0 and 1 of a built-in one",
        ("component", "end"),
    ),
    _counter(
        "reward/alarms",
        "alarms",
        "one iteration in whose whole batch a component of 16 turns or more does not vary, or "
        "lies at one end in more than 95 %; of"
        " the kind copies_pay, one in which copies of the saved interaction earn more than right "
        "answers",
        "Components that have nothing to teach, and mixes that teach to copy",
        ("component", "kind"),
    ),
    _gauge(
        "reward/recall_correlation",
        "1",
        "last",
        "turns of the whole batch that have both",
        "Pearson correlation of a component with recall; absent where one of them does not "
        "vary, or over fewer than 8 turns",
        ("component",),
        "higher",
    ),
    _counter("reward/turns", "turns", "one turn scored", "Turns scored"),
    _counter(
        "reward/unrewarded_turns",
        "turns",
        "one scored turn to which no component with a weight applies: its reward is 0 by rule",
        "Turns without a reward of their own",
    ),
    _counter(
        "reward/failed_turns",
        "turns",
        "one turn that could not be scored and is left out of training",
        "Failed turns",
        ("reason",),
    ),
    _histogram("reward/batch_seconds", "s", _SECONDS, "scoring calls", "Time of one scoring call"),
    _histogram(
        "reward/batch_turns", "turns", _TURNS, "scoring calls", "Answered turns of one scoring call"
    ),
    _histogram(
        "reward/queue_seconds",
        "s",
        _SECONDS,
        "tries of scoring calls",
        "Wait for a worker with room for the call",
    ),
    _gauge(
        "reward/queue",
        "episodes",
        "sum",
        "this moment, summed over workers",
        "Episodes that wait to be scored",
    ),
]

_ROLLOUT = [
    _counter("rollout/turns", "turns", "one answered interaction", "Interactions answered"),
    _counter("rollout/tokens", "tokens", "one generated token, [EOS] included", "Tokens generated"),
    _gauge(
        "rollout/tokens_per_second",
        "tokens/s",
        "sum",
        "seconds of generation, summed over workers",
        "Throughput, evaluations left out",
        better="higher",
    ),
    _histogram(
        "rollout/answer_tokens", "tokens", _TOKENS, "answers", "Length of an answer, [EOS] included"
    ),
    _mean(
        "rollout/no_eos_fraction",
        "fraction",
        "answers",
        "Share cut at the length limit",
        better="lower",
    ),
    _mean(
        "rollout/recall",
        "fraction",
        "facts asked for",
        "Share that stands in the answer",
        better="higher",
    ),
    _mean(
        "rollout/exact",
        "fraction",
        "questions",
        "Share whose answer names every value asked for and no wrong one",
        better="higher",
    ),
    _mean(
        "rollout/precision",
        "fraction",
        "right and wrong values that answers name",
        "Share of right ones",
        better="higher",
    ),
    _mean(
        "rollout/slot_occupancy",
        "fraction",
        "decode steps times slots",
        "Share of slots that were decoding",
        better="higher",
    ),
    _mean("rollout/episode_turns", "turns", "episodes", "Answered interactions of an episode"),
    _histogram(
        "sync/seconds",
        "s",
        _SECONDS,
        "weight broadcasts",
        "From publishing weights to the last worker's confirmation",
    ),
    _counter(
        "sync/bytes",
        "bytes",
        "one byte of weights, counted once per broadcast",
        "Weights published",
    ),
    _counter(
        "sync/failures",
        "workers",
        "one worker that did not confirm new weights",
        "Workers left behind by a broadcast",
    ),
    _gauge(
        "sync/version",
        "version",
        "max",
        "this moment",
        "Newest version of the weights that was published",
    ),
]

_OPERATIONS = [
    _gauge(
        "conductor/dealt",
        "episodes",
        "last",
        "the whole run, by its journal",
        "Tasks dealt: the sum of what became of them",
    ),
    _gauge(
        "conductor/trained", "episodes", "last", "the whole run, by its journal", "Tasks trained on"
    ),
    _gauge(
        "conductor/dropped",
        "episodes",
        "last",
        "the whole run, by its journal",
        "Tasks given up, to be dealt again",
        ("reason",),
    ),
    _gauge(
        "conductor/failed",
        "episodes",
        "last",
        "the whole run, by its journal",
        "Tasks that cannot be played or scored",
        ("reason",),
    ),
    _gauge(
        "conductor/in_flight", "episodes", "last", "this moment", "Tasks dealt and not yet ended"
    ),
    _gauge(
        "conductor/lost",
        "episodes",
        "last",
        "the whole run, by its journal",
        "Tasks of which nothing is known: must stay 0",
    ),
    _gauge(
        "fleet/workers",
        "workers",
        "last",
        "this moment",
        "Workers of a pool by state",
        ("pool", "state"),
    ),
    _counter(
        "fleet/restarts",
        "restarts",
        "one worker, or the learner group, that serves again after a death",
        "Restarts",
        ("pool",),
    ),
    _counter(
        "fleet/retries",
        "calls",
        "one call tried again by the pool after an infra failure; halves of a batch of rewards "
        "are new calls",
        "Calls tried again",
        ("pool",),
    ),
    _counter(
        "time/phase_seconds",
        "s",
        "one second that one process of the role spent in the phase",
        "Where time goes; its rate is the share of each phase. The conductor waits for many "
        "things at once: its phases overlap",
        ("phase", "role"),
    ),
    _histogram("checkpoint/seconds", "s", _SECONDS, "checkpoints", "Time to save one"),
    _counter("checkpoint/saved", "checkpoints", "one checkpoint begun", "Checkpoints"),
    _counter(
        "run/watchdog",
        "alarms",
        "one time that no rank had reported anything for too long",
        "Stalls",
        ("waiting_for",),
    ),
    _counter(
        "run/resumes",
        "starts",
        "one start of the driver from a checkpoint",
        "Times the run was resumed",
    ),
    _gauge("run/step", "steps", "max", "the whole run", "Steps finished"),
    _gauge("run/stage", "index", "max", "the whole run", "Index of the current stage, from 0"),
    _gauge(
        "run/curriculum_step",
        "index",
        "last",
        "the MRL stage",
        "Index of the current curriculum step, from 0",
    ),
    _gauge("run/iteration", "iterations", "last", "the MRL stage", "Iterations finished"),
    _gauge(
        "run/progress",
        "fraction",
        "max",
        "steps of the whole run",
        "Share of the run that is finished",
    ),
]

REGISTRY: dict[str, Metric] = _table(
    [*_TRAIN, *_EVAL, *_RL, *_MEMORY, *_REWARD, *_ROLLOUT, *_OPERATIONS]
)
