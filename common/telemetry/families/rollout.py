"""Metrics of generation and of the conductor."""

from __future__ import annotations

from common.telemetry.metric import SECONDS, TOKENS, Metric, counter, gauge, histogram, mean

ROLLOUT: list[Metric] = [
    counter("rollout/turns", "turns", "one answered interaction", "Interactions answered"),
    counter("rollout/tokens", "tokens", "one generated token, [EOS] included", "Tokens generated"),
    gauge(
        "rollout/tokens_per_second",
        "tokens/s",
        "sum",
        "seconds of generation, summed over workers",
        "Throughput, evaluations left out",
        better="higher",
    ),
    histogram(
        "rollout/answer_tokens", "tokens", TOKENS, "answers", "Length of an answer, [EOS] included"
    ),
    histogram(
        "rollout/thought_tokens", "tokens", TOKENS, "thoughts", "Length of the thought of an answer"
    ),
    mean(
        "rollout/thought_cut",
        "fraction",
        "thoughts",
        "Share that the budget of a thought ended, and not the policy",
        better="lower",
    ),
    mean(
        "rollout/no_eos_fraction",
        "fraction",
        "answers",
        "Share cut at the length limit",
        better="lower",
    ),
    mean(
        "rollout/recall",
        "fraction",
        "facts asked for",
        "Share that stands in the answer",
        better="higher",
    ),
    mean(
        "rollout/exact",
        "fraction",
        "questions",
        "Share whose answer names every value asked for and no wrong one",
        better="higher",
    ),
    mean(
        "rollout/precision",
        "fraction",
        "right and wrong values that answers name",
        "Share of right ones",
        better="higher",
    ),
    mean(
        "rollout/slot_occupancy",
        "fraction",
        "decode steps times slots",
        "Share of slots that were decoding",
        better="higher",
    ),
    mean(
        "rollout/turn_seconds",
        "s",
        "answers, as their worker completes them, evaluations included",
        "From a query's place in a slot to the end of its answer",
        better="lower",
    ),
    mean(
        "rollout/staleness",
        "versions",
        "episodes",
        "Steps of the run between the weights that played an episode and those that learn from it: "
        "0 in a synchronous run",
        better="lower",
    ),
    gauge(
        "rollout/staleness_max",
        "versions",
        "max",
        "episodes",
        "The same of the oldest episode of the batch",
        better="lower",
    ),
    mean("rollout/episode_turns", "turns", "episodes", "Answered interactions of an episode"),
    mean(
        "rollout/environment",
        "as its environment says",
        "episodes whose environment has such a figure",
        "Figures of the environment at the end of an episode, such as the progress of a game",
        labels=("figure",),
    ),
    histogram(
        "sync/seconds",
        "s",
        SECONDS,
        "weight broadcasts",
        "From publishing weights to the last worker's confirmation",
    ),
    counter(
        "sync/bytes",
        "bytes",
        "one byte of weights, counted once per broadcast",
        "Weights published",
    ),
    counter(
        "sync/failures",
        "workers",
        "one worker that did not confirm new weights",
        "Workers left behind by a broadcast",
    ),
    gauge(
        "sync/version",
        "version",
        "max",
        "this moment",
        "Steps of the run behind the weights that were published last",
    ),
]
