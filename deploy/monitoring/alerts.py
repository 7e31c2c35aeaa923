"""Alert rules for Prometheus: what is worth waking somebody, or at least worth a look.

Each rule is by run. Its sentence may use `{{ $labels.run }}` and `{{ $value }}` as Prometheus'
templates do; its runbook section says what it means, how to look, and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from deploy.monitoring.queries import expand, grown
from deploy.monitoring.runbook import BASE, section_url


@dataclass(frozen=True)
class Alert:
    name: str
    severity: Literal["critical", "warning"]
    """critical: the run makes no progress, loses work or learns wrong things. warning: it may
    soon."""
    expression: str
    """As in `queries.py`."""
    lasts: str
    """For so long before it fires."""
    sentence: str
    runbook: str
    """Heading of the section of docs/runbook.md."""


ALERTS = (
    Alert(
        "EngramNoProgress",
        "critical",
        "time() - <time/last_step> > 1800 unless on (run) <run/progress> >= 1",
        "5m",
        "Run {{ $labels.run }} has finished no step for {{ $value | humanizeDuration }}.",
        "No progress",
    ),
    Alert(
        "EngramExporterGone",
        "critical",
        "last_over_time(<time/last_step>[1h]) unless on (run) <time/last_step> "
        "unless on (run) last_over_time(<run/progress>[1h]) >= 1",
        "3m",
        "The metrics of run {{ $labels.run }} are gone, and it has steps left.",
        "Exporter gone",
    ),
    Alert(
        "EngramRewardFailures",
        "warning",
        f"{grown('<reward/failed_turns>', '15m')} / ({grown('<reward/failed_turns>', '15m')} + "
        f"{grown('<reward/turns>', '15m')}) > 0.05",
        "5m",
        "{{ $value | humanizePercentage }} of the turns of run {{ $labels.run }} cannot be scored.",
        "Reward failures",
    ),
    Alert(
        "EngramRecallFallsWhileRewardRises",
        "critical",
        grown('<hacking/alarms kind=~"recall_falls|held_out_falls">', "1h") + " > 0",
        "1m",
        "Reward of run {{ $labels.run }} rises while recall falls, beyond noise.",
        "Recall falls while reward rises",
    ),
    Alert(
        "EngramRewardHacking",
        "warning",
        grown('<hacking/alarms kind!~"recall_falls|held_out_falls">', "1h", "run, kind") + " > 0",
        "1m",
        "Answers of run {{ $labels.run }} show a sign of reward hacking: {{ $labels.kind }}.",
        "Reward hacking",
    ),
    Alert(
        "EngramStaleness",
        "warning",
        "<rollout/staleness> > 4",
        "10m",
        "Run {{ $labels.run }} learns from episodes that are {{ $value }} versions old on average.",
        "Staleness",
    ),
    Alert(
        "EngramKLHigh",
        "warning",
        "<objective/kl> > 20",
        "10m",
        'The policy of run {{ $labels.run }} is {{ printf "%.3g" $value }} nats per answer away '
        "from its reference.",
        "KL too high",
    ),
    Alert(
        "EngramUpdateTooLarge",
        "warning",
        "<ppo/approx_kl> > 0.1",
        "10m",
        'An update of run {{ $labels.run }} moves the policy by {{ printf "%.3g" $value }} nats '
        "per token.",
        "KL too high",
    ),
    Alert(
        "EngramNotFinite",
        "critical",
        f"{grown('<run/not_finite>', '15m')} > 0",
        "0m",
        "{{ $value }} metrics of run {{ $labels.run }} were NaN or infinite.",
        "Values that are not numbers",
    ),
    Alert(
        "EngramLearnerRolloutDisagree",
        "critical",
        "<ppo/log_prob_max_difference> > 0.01",
        "1m",
        "Learner and rollout workers of run {{ $labels.run }} disagree by "
        '{{ printf "%.3g" $value }} nats on a token.',
        "Learner and rollout disagree",
    ),
    Alert(
        "EngramWeightsNotTaken",
        "warning",
        f"{grown('<sync/failures>', '15m')} > 0",
        "1m",
        "{{ $value }} rollout workers of run {{ $labels.run }} did not confirm new weights.",
        "Weights not taken",
    ),
    Alert(
        "EngramRestarts",
        "warning",
        f"{grown('<fleet/restarts>', '1h', 'run, pool')} >= 3",
        "0m",
        "Actors of the pool {{ $labels.pool }} of run {{ $labels.run }} were restarted "
        "{{ $value }} times in an hour.",
        "Restarts",
    ),
    Alert(
        "EngramWorkersDown",
        "warning",
        'sum by (run, pool) (<fleet/workers state=~"dead|restarting">) > 0',
        "15m",
        "{{ $value }} workers of the pool {{ $labels.pool }} of run {{ $labels.run }} do not come "
        "back.",
        "Workers down",
    ),
    Alert(
        "EngramEpisodesLost",
        "critical",
        "<conductor/lost> > 0",
        "1m",
        "{{ $value }} episodes of run {{ $labels.run }} are in no book.",
        "Episodes failed or lost",
    ),
    Alert(
        "EngramCheckpointOld",
        "warning",
        "time() - <checkpoint/last_saved> > 3600 unless on (run) <run/progress> >= 1",
        "5m",
        "A crash of run {{ $labels.run }} would lose {{ $value | humanizeDuration }} of work.",
        "Checkpoint too old",
    ),
    Alert(
        "EngramDiskLow",
        "warning",
        "<host/disk_free> < 0.1",
        "5m",
        "{{ $value | humanizePercentage }} of the disk of run {{ $labels.run }} is left.",
        "Disk",
    ),
    Alert(
        "EngramDiskFullSoon",
        "critical",
        "predict_linear(<host/disk_free_bytes>[1h], 4 * 3600) < 0 and on (run) "
        "<host/disk_free> < 0.2",
        "10m",
        "The disk of run {{ $labels.run }} will be full in less than four hours.",
        "Disk",
    ),
    Alert(
        "EngramHostMemory",
        "critical",
        "<host/memory_used> > 0.92",
        "5m",
        "Memory of a host of the {{ $labels.role }} of run {{ $labels.run }} is "
        "{{ $value | humanizePercentage }} full.",
        "Host memory",
    ),
)


def rules(runbook: str = BASE) -> dict[str, Any]:
    """The rules file, as Prometheus reads it (YAML). runbook: address of that page. Raises
    InputError for what is not in the registry or the runbook."""
    return {
        "groups": [
            {"name": "engram", "interval": "15s", "rules": [_rule(a, runbook) for a in ALERTS]}
        ]
    }


def _rule(alert: Alert, runbook: str) -> dict[str, Any]:
    where = f"alert {alert.name}"
    return {
        "alert": alert.name,
        "expr": expand(where, alert.expression),
        "for": alert.lasts,
        "labels": {"severity": alert.severity, "component": "engram"},
        "annotations": {
            "summary": alert.sentence,
            "runbook_url": section_url(where, alert.runbook, runbook),
        },
    }
