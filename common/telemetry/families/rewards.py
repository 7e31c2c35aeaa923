"""Metrics of rewards."""

from __future__ import annotations

from common.telemetry.metric import SECONDS, TURNS, VALUES, Metric, counter, gauge, histogram, mean

REWARD: list[Metric] = [
    mean(
        "reward/component",
        "reward",
        "scored turns",
        "Raw reward component, before its weight",
        ("component", "cohort"),
        "higher",
    ),
    mean(
        "reward/by_turn",
        "reward",
        "scored turns that are trained on",
        "Weighted reward by the number of the turn in its conversation",
        ("turn",),
        "higher",
    ),
    mean(
        "reward/by_distance",
        "reward",
        "scored turns that are trained on and ask for facts",
        "Weighted reward by the turns since the oldest fact that is asked for was said",
        ("distance",),
        "higher",
    ),
    mean(
        "reward/component_by_turn",
        "reward",
        "scored turns that are trained on, to which the component applies",
        "Raw reward component by the number of the turn in its conversation",
        ("component", "turn"),
        "higher",
    ),
    mean(
        "reward/component_by_distance",
        "reward",
        "scored turns that are trained on and ask for facts, to which the component applies",
        "Raw reward component by the turns since the oldest fact that is asked for was said",
        ("component", "distance"),
        "higher",
    ),
    # Beside the mean: where values fall below 0 the sum of a histogram is no counter, and
    # Prometheus has no mean of it.
    histogram(
        "reward/value",
        "reward",
        VALUES,
        "scored turns to which the component applies",
        "Distribution of a raw reward component",
        ("component",),
    ),
    mean(
        "reward/saturated",
        "fraction",
        "scored turns to which the component applies",
        "Share at an end of the component's range: its clip's, or 0 and 1 of a built-in one",
        ("component", "end"),
    ),
    counter(
        "reward/alarms",
        "alarms",
        "one iteration in whose whole batch a component of 16 turns or more does not vary, or "
        "lies at one end in more than 95 %; of"
        " the kind copies_pay, one in which copies of the saved interaction earn more than right "
        "answers",
        "Components that have nothing to teach, and mixes that teach to copy",
        ("component", "kind"),
    ),
    gauge(
        "reward/recall_correlation",
        "1",
        "last",
        "turns of the whole batch that have both",
        "Pearson correlation of a component with recall; absent where one of them does not "
        "vary, or over fewer than 8 turns",
        ("component",),
        "higher",
    ),
    counter("reward/turns", "turns", "one turn scored", "Turns scored"),
    counter(
        "reward/unrewarded_turns",
        "turns",
        "one scored turn to which no component with a weight applies: its reward is 0 by rule",
        "Turns without a reward of their own",
    ),
    counter(
        "reward/failed_turns",
        "turns",
        "one turn that could not be scored and is left out of training",
        "Failed turns",
        ("reason",),
    ),
    histogram("reward/batch_seconds", "s", SECONDS, "scoring calls", "Time of one scoring call"),
    histogram(
        "reward/batch_turns", "turns", TURNS, "scoring calls", "Answered turns of one scoring call"
    ),
    counter(
        "reward/component_seconds",
        "s",
        "one second that a reward worker spent in the component",
        "Time by component; the largest rate is the slowest component",
        ("component",),
    ),
    histogram(
        "reward/queue_seconds",
        "s",
        SECONDS,
        "tries of scoring calls",
        "Wait for a worker with room for the call",
    ),
    gauge(
        "reward/queue",
        "episodes",
        "sum",
        "this moment, summed over workers",
        "Episodes that wait to be scored",
    ),
]
