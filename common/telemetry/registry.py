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

from common.telemetry.families import (
    algorithms,
    evaluation,
    learner,
    operations,
    rewards,
    rollout,
    watching,
)
from common.telemetry.metric import Metric


def _table(metrics: Iterable[Metric]) -> dict[str, Metric]:
    table: dict[str, Metric] = {}
    for metric in metrics:
        if metric.name in table:
            raise ValueError(f"metric {metric.name} stands twice in the registry")
        table[metric.name] = metric
    return table


REGISTRY: dict[str, Metric] = _table(
    [
        *learner.TRAIN,
        *evaluation.EVAL,
        *algorithms.RL,
        *learner.MEMORY,
        *rewards.REWARD,
        *rollout.ROLLOUT,
        *operations.OPERATIONS,
        *watching.WATCHING,
    ]
)
