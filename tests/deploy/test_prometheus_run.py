"""A real Prometheus scrapes a real run on a real Ray: what the registry promises is there, and
dashboards have data where their metrics are there."""

from __future__ import annotations

import pytest

from common.telemetry.prometheus import prometheus_name
from common.telemetry.registry import REGISTRY
from deploy.monitoring.dashboards import DASHBOARDS
from deploy.monitoring.grafana import SCOPE
from deploy.monitoring.queries import expand, metrics_of, parts_of
from tests.observed_run import Observed

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(420)]

NEEDS = {
    "a stage reward_model": (
        "eval/preference_accuracy",
        "eval/preference_accuracy_high",
        "eval/preference_accuracy_low",
        "eval/preference_calibration_error",
        "eval/preference_loss",
        "train/accuracy_preference",
        "train/loss_centering",
        "train/loss_preference",
        "train/reward_margin",
    ),
    "another algorithm": (
        "a2c/loss_policy",
        "grpo/loss_policy",
        "reinforce/baseline",
        "reinforce/loss_policy",
        "rejection/kept",
        "rejection/kept_return",
        "rejection/loss_policy",
        "rloo/loss_policy",
    ),
    "the setting value_head.detach: false": ("critic/loss_in_policy",),
    "prompts without references": (
        "hacking/open_empty",
        "hacking/open_length",
        "hacking/open_repeated",
    ),
    "several samples of a task": (
        "objective/tasks_alike",
        "objective/tasks_incomplete",
        "objective/tasks_left_out",
    ),
    "an environment with figures": ("rollout/environment",),
    "a text memory": ("memory/written_cut", "memory/written_empty", "memory/written_tokens"),
    "thoughts": ("rollout/thought_cut", "rollout/thought_tokens"),
    "the setting mismatch.correct": ("mismatch/corrected", "mismatch/weight"),
    "a curriculum step with a rule on held-out figures": ("curriculum/exact", "curriculum/recall"),
    "the setting skip_without_signal": ("objective/minibatches_without_signal",),
    "the setting skip_log_ratio": ("ppo/minibatches_skipped",),
    "the setting stop_kl": ("ppo/passes_stopped",),
    "the setting neighbours": ("train/accuracy_neighbours", "train/loss_neighbours"),
    "a mixture of experts": ("train/loss_router",),
    "the setting unfreeze": ("train/part_learning_rate",),
}
"""What a run of all stages with PPO does not record, by what it lacks."""
EVENTS = {
    "conductor/dropped": "a worker was lost",
    "conductor/failed": "an episode cannot be played",
    "eval/precision": "an answer names a value",
    "hacking/alarms": "an alarm is raised",
    "reward/alarms": "an alarm is raised",
    "reward/failed_turns": "a turn cannot be scored",
    "reward/recall_correlation": "recall varies within a batch",
    "run/watchdog": "nothing moves for two minutes",
}
"""What is recorded when it happens, which in so small a run it may."""


def missing(names: set[str]) -> set[str]:
    """Metrics of which a series was never there."""
    found = set()
    for metric in REGISTRY.values():
        name = prometheus_name(metric)
        if not ({f"{name}_{part}" for part in parts_of(metric)} or {name}) <= names:
            found.add(metric.name)
    return found


def test_a_run_shows_every_metric_or_it_is_listed_with_what_it_needs(observed: Observed) -> None:
    needing = {name for names in NEEDS.values() for name in names}
    assert sorted(missing(observed.names()) - EVENTS.keys()) == sorted(needing)


def test_every_query_has_data_where_its_metrics_are_there(observed: Observed) -> None:
    absent, empty, asked_for = missing(observed.names()), [], 0
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for query in panel.queries:
                metrics = metrics_of("here", query.expression)
                if {metric.name for metric in metrics} & absent:
                    continue
                text = expand("here", query.expression, SCOPE).replace("$run", "watched")
                asked_for += 1
                if not observed.ask_over_the_run(text.replace("$__rate_interval", "10s")):
                    empty.append(f"{dashboard.title}: {panel.question} {text}")
    assert empty == []
    assert asked_for > 80


def test_host_memory_is_there_for_every_role(observed: Observed) -> None:
    found = observed.ask_over_the_run("engram_host_memory_used")
    roles = {each["metric"]["role"] for each in found}
    assert roles == {"driver", "learner", "rollout", "rewards"}
    assert all(0 < float(value) <= 1 for each in found for _, value in each["values"])


def test_moments_are_those_of_the_clock(observed: Observed) -> None:
    for name in ("engram_time_last_step", "engram_checkpoint_last_saved"):
        (series,) = observed.ask_over_the_run(name)
        values = [float(value) for _, value in series["values"]]
        assert values == sorted(values)
        assert observed.began - 1 < values[0] <= values[-1] <= observed.ended
        assert len(set(values)) > 3, "it moves"
