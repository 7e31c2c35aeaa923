"""Every alert rule, run by promtool on series that must make it fire, and on some that must not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.monitoring.__main__ import RULES, write
from deploy.monitoring.alerts import ALERTS
from deploy.monitoring.runbook import section_url
from tests.prometheus_tools import run_tool

Series = dict[str, str]
"""Values by series, one a minute from minute 0, in promtool's notation."""


def flat(value: float, minutes: int = 180) -> str:
    return f"{value}+0x{minutes}"


def from_minute(minute: int, value: float) -> str:
    """A series that begins in this minute."""
    return f"_x{minute} {value}+0x180"


HALF, DONE = {'engram_run_progress{run="a"}': flat(0.5)}, {'engram_run_progress{run="a"}': flat(1)}


@dataclass(frozen=True)
class Case:
    fires: Series
    at: str
    sentence: str
    quiet: tuple[Series, ...]
    labels: dict[str, str] = field(default_factory=dict)


def gauge(name: str, high: float, low: float, sentence: str, labels: str = "") -> Case:
    """One whose rule compares a gauge with a bound."""
    series = f'{name}{{run="a"{labels}}}'
    return Case({series: flat(high)}, "30m", sentence, ({series: flat(low)}, {}))


HACKING = 'engram_hacking_alarms_total{run="a",kind="%s"}'
STEP, SAVED = 'engram_time_last_step{run="a"}', 'engram_checkpoint_last_saved{run="a"}'
FAILED = 'engram_reward_failed_turns_total{run="a",reason="bleu"}'
TURNS = 'engram_reward_turns_total{run="a"}'
SYNC = 'engram_sync_failures_total{run="a",instance="host:%d"}'
"""A run that is resumed may be another target."""
RESTARTS = 'engram_fleet_restarts_total{run="a",pool="rollout"}'
WORKERS = 'engram_fleet_workers{run="a",pool="rollout",state="%s"}'
FREE, SHARE = 'engram_host_disk_free_bytes{run="a"}', 'engram_host_disk_free{run="a"}'
LOSING = "1e10-1e8x180"
"""100 MB a minute of 10 GB."""

CASES = {
    "EngramNoProgress": Case(
        {STEP: flat(0), **HALF},
        "45m",
        "Run a has finished no step for 45m 0s.",
        ({STEP: "0+60x180", **HALF}, {STEP: flat(0), **DONE}, {}),
    ),
    "EngramExporterGone": Case(
        {STEP: "0+60x10 stale", 'engram_run_progress{run="a"}': "0.5+0x10 stale"},
        "20m",
        "The metrics of run a are gone, and it has steps left.",
        (
            {STEP: "0+60x180", **HALF},
            {STEP: "0+60x10 stale", 'engram_run_progress{run="a"}': "0.9+0x9 1 stale"},
        ),
    ),
    "EngramRewardFailures": Case(
        {FAILED: "0+1x180", TURNS: "0+9x180"},
        "45m",
        "10% of the turns of run a cannot be scored.",
        (
            {FAILED: "0+1x180", TURNS: "0+99x180"},
            {FAILED: flat(50), TURNS: "100+9x180"},  # long ago
            {TURNS: "0+9x180"},
        ),
    ),
    "EngramRecallFallsWhileRewardRises": Case(
        {HACKING % "held_out_falls": from_minute(40, 1)},
        "45m",
        "Reward of run a rises while recall falls, beyond noise.",
        ({HACKING % "lists": from_minute(40, 1)}, {}),
    ),
    "EngramRewardHacking": Case(
        {HACKING % "copies": from_minute(40, 1)},
        "45m",
        "Answers of run a show a sign of reward hacking: copies.",
        ({HACKING % "recall_falls": from_minute(40, 1)},),
        {"kind": "copies"},
    ),
    "EngramStaleness": gauge(
        "engram_rollout_staleness",
        5,
        4,
        "Run a learns from episodes that are 5 versions old on average.",
    ),
    "EngramKLHigh": gauge(
        "engram_objective_kl",
        25,
        19,
        "The policy of run a is 25 nats per answer away from its reference.",
    ),
    "EngramUpdateTooLarge": gauge(
        "engram_ppo_approx_kl",
        0.2,
        0.05,
        "An update of run a moves the policy by 0.2 nats per token.",
    ),
    "EngramNotFinite": Case(
        {'engram_run_not_finite_total{run="a"}': "0+0x29 2+0x60"},
        "31m",
        "2 metrics of run a were NaN or infinite.",
        ({'engram_run_not_finite_total{run="a"}': flat(2)},),
    ),
    "EngramLearnerRolloutDisagree": gauge(
        "engram_ppo_log_prob_max_difference",
        0.05,
        0.005,
        "Learner and rollout workers of run a disagree by 0.05 nats on a token.",
    ),
    "EngramWeightsNotTaken": Case(
        {SYNC % 1: "1+0x20 stale", SYNC % 2: "_x22 1+0x28 2+0x60"},  # resumed, and one more
        "52m",
        "1 rollout workers of run a did not confirm new weights.",
        (
            {SYNC % 1: flat(1)},
            {SYNC % 1: "1+0x20 stale", SYNC % 2: from_minute(22, 1)},
            {SYNC % 1: "5+0x30 stale", SYNC % 2: from_minute(48, 5)},  # a gap 15 minutes ago
        ),
    ),
    "EngramRestarts": Case(
        {RESTARTS: "0+0x70 3+0x60"},
        "80m",
        "Actors of the pool rollout of run a were restarted 3 times in an hour.",
        ({RESTARTS: "0+0x70 2+0x60"}, {RESTARTS: flat(9)}),
        {"pool": "rollout"},
    ),
    "EngramWorkersDown": Case(
        {WORKERS % "dead": flat(1), WORKERS % "healthy": flat(3)},
        "30m",
        "1 workers of the pool rollout of run a do not come back.",
        (
            {WORKERS % "dead": flat(0), WORKERS % "healthy": flat(3)},
            {WORKERS % "dead": "0+0x20 1+0x5 0+0x60"},  # and back after five minutes
        ),
        {"pool": "rollout"},
    ),
    "EngramEpisodesLost": gauge(
        "engram_conductor_lost", 1, 0, "1 episodes of run a are in no book."
    ),
    "EngramCheckpointOld": Case(
        {SAVED: flat(0), **HALF},
        "70m",
        "A crash of run a would lose 1h 10m 0s of work.",
        ({SAVED: "0+60x180", **HALF}, {SAVED: flat(0), **DONE}),
    ),
    "EngramDiskLow": gauge("engram_host_disk_free", 0.05, 0.2, "5% of the disk of run a is left."),
    "EngramDiskFullSoon": Case(
        {FREE: LOSING, SHARE: flat(0.15)},
        "75m",
        "The disk of run a will be full in less than four hours.",
        ({FREE: LOSING, SHARE: flat(0.5)}, {FREE: flat(1e10), SHARE: flat(0.15)}),
    ),
    "EngramHostMemory": Case(
        {'engram_host_memory_used{run="a",role="rollout"}': flat(0.95)},
        "30m",
        "Memory of a host of the rollout of run a is 95% full.",
        ({'engram_host_memory_used{run="a",role="rollout"}': flat(0.8)},),
        {"role": "rollout"},
    ),
}


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    write(folder)
    return folder / RULES


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == {alert.name for alert in ALERTS}
    assert all(case.quiet for case in CASES.values())


def test_the_rules_are_rules(rules: Path) -> None:
    assert f"{len(ALERTS)} rules found" in run_tool("check", "rules", rules)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_a_rule_fires_when_it_must_and_only_then(alert: Any, rules: Path, tmp_path: Path) -> None:
    case = CASES[alert.name]
    labels = {"run": "a", "severity": alert.severity, "component": "engram"} | case.labels
    told = {"summary": case.sentence, "runbook_url": section_url("here", alert.runbook)}
    firing = [{"exp_labels": labels, "exp_annotations": told}]
    tests = [_test(alert.name, case, case.fires, firing)]
    tests += [_test(alert.name, case, series, []) for series in case.quiet]
    file = tmp_path / "cases.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "tests": tests}))
    run_tool("test", "rules", file)


def _test(name: str, case: Case, series: Series, expected: list[Any]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "alert_rule_test": [{"eval_time": case.at, "alertname": name, "exp_alerts": expected}],
    }
