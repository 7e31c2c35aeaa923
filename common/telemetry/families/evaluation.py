"""Metrics of evaluations."""

from __future__ import annotations

from common.telemetry.metric import Metric, mean

EVAL: list[Metric] = [
    mean(
        "eval/preference_accuracy",
        "fraction",
        "held-out pairs",
        "Share whose better answer has the higher reward",
        better="higher",
    ),
    mean(
        "eval/preference_accuracy_low",
        "fraction",
        "held-out pairs",
        "Lower end of its 95 % interval",
        better="higher",
    ),
    mean(
        "eval/preference_accuracy_high",
        "fraction",
        "held-out pairs",
        "Upper end of its 95 % interval",
        better="higher",
    ),
    mean(
        "eval/preference_loss",
        "nats",
        "held-out pairs",
        "-log of the probability that the better answer wins",
        better="lower",
    ),
    mean(
        "eval/preference_calibration_error",
        "fraction",
        "held-out pairs",
        "Distance of confidence and accuracy, in bins",
        better="lower",
    ),
    mean(
        "eval/scores",
        "reward",
        "scored turns of held-out conversations",
        "Weighted reward",
        better="higher",
    ),
    mean(
        "eval/reward",
        "reward",
        "scored turns of held-out conversations",
        "Raw reward component",
        ("component",),
        "higher",
    ),
    mean(
        "eval/recall",
        "fraction",
        "facts asked for in held-out conversations, at this distance in interactions",
        "Share recalled; memory is kept, or erased before the question; see also summary.json",
        ("memory", "distance"),
        "higher",
    ),
    mean(
        "eval/exact",
        "fraction",
        "questions of held-out conversations, at this distance",
        "Share whose answer names every value asked for and no wrong one",
        ("distance",),
        "higher",
    ),
    mean(
        "eval/precision",
        "fraction",
        "right and wrong values that answers to held-out questions name",
        "Share of right ones",
        ("distance",),
        "higher",
    ),
    mean(
        "eval/changed",
        "fraction",
        "facts that replaced an earlier value, asked for in held-out conversations",
        "Share recalled",
        ("distance",),
        "higher",
    ),
    mean(
        "eval/outdated",
        "fraction",
        "held-out questions for facts that replaced an earlier value",
        "Share whose answer names a replaced value",
        ("distance",),
        "lower",
    ),
    mean(
        "eval/by_order",
        "fraction",
        "facts asked for in held-out conversations that were told in this place among all told, "
        "from 1",
        "Share recalled",
        ("order",),
        "higher",
    ),
]
