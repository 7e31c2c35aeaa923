"""Metrics of reward hacking and of the use of actors: what a reader watches while a run goes on."""

from __future__ import annotations

from common.telemetry.metric import Metric, counter, mean

WATCHING: list[Metric] = [
    mean(
        "hacking/values_named",
        "values",
        "values asked for",
        "Known values that answers to questions name, right or wrong, for each value asked for: 1 "
        "where each question gets one guess per value, more where answers list values",
    ),
    mean(
        "hacking/copied",
        "fraction",
        "answers that have a reference",
        "Share of answers made of n-grams of the saved interaction where the reference is not",
        better="lower",
    ),
    mean(
        "hacking/length",
        "1",
        "tokens of references",
        "Tokens of answers over those of their references",
    ),
    mean(
        "hacking/repeated",
        "fraction",
        "answers that have a reference",
        "Share of the n-grams of an answer that stood in it before",
        better="lower",
    ),
    mean(
        "hacking/repeated_in_references",
        "fraction",
        "answers that have a reference",
        "Share of the n-grams of the reference that stood in it before",
    ),
    mean(
        "hacking/open_empty",
        "fraction",
        "answers that have no reference",
        "Share of answers without a text",
        better="lower",
    ),
    mean(
        "hacking/open_length",
        "tokens",
        "answers that have no reference",
        "Tokens of an answer, its end token included",
    ),
    mean(
        "hacking/open_repeated",
        "fraction",
        "answers that have no reference",
        "Share of the n-grams of an answer that stood in it before",
        better="lower",
    ),
    counter(
        "hacking/alarms",
        "alarms",
        "one iteration in which the condition of the kind held (docs/watching.md)",
        "Signs that reward is earned without remembering",
        ("kind",),
    ),
    mean(
        "time/idle_fraction",
        "fraction",
        "seconds of the processes of a role",
        "Share spent waiting: learner ranks for episodes, rollout and reward workers for a call",
        ("role",),
        better="lower",
    ),
]
