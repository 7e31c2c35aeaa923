"""The resources that each actor of a run claims from Ray's scheduler, in one file, so that the
plan, a laptop's cluster and the actors agree.

A claim is admission control: it decides where an actor may start, not how fast it runs. Rollout
workers and learner ranks claim the threads they compute with, which on a real cluster keeps a node
from being crowded; on a laptop the local cluster is given as many logical CPUs as the claims add up
to, so that everything starts and shares the cores there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.config.run import Run

REWARD_WORKER_CPUS = 0.5
"""Scoring is single-threaded Python in bursts between batches of episodes."""
CONDUCTOR_CPUS = 0.25
"""The conductor waits for others nearly all of its time."""


@dataclass(frozen=True)
class Claim:
    """`count` actors of one role, each claiming `cpus` and `gpus` on a node with `labels`."""

    role: str
    count: int
    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)


def claims(run: Run) -> tuple[Claim, ...]:
    """Every actor that must stand at the busiest moment of a run. A run without MRL has no rollout
    half."""
    learners = Claim(
        "learner rank",
        run.learner.ranks,
        float(run.learner.threads),
        run.learner.gpus_per_rank,
        run.learner.node_labels,
    )
    if not run.needs_rollout:
        return (learners,)
    return (
        Claim("conductor", 1, CONDUCTOR_CPUS),
        Claim(
            "rollout worker",
            run.rollout.workers,
            float(run.rollout.threads),
            run.rollout.gpus_per_worker,
            run.rollout.node_labels,
        ),
        Claim(
            "reward worker",
            run.rewards.workers,
            REWARD_WORKER_CPUS,
            run.rewards.gpus_per_worker,
            run.rewards.node_labels,
        ),
        learners,
    )


def total_cpus(run: Run) -> float:
    return sum(claim.count * claim.cpus for claim in claims(run))


def growth_cpus(run: Run) -> float:
    """The further CPUs that reward workers claim if all that are allowed are started. A run goes on
    without them where the cluster has no room."""
    grow = max(0, (run.rewards.max_workers or 0) - run.rewards.workers)
    return grow * REWARD_WORKER_CPUS if run.needs_rollout else 0.0


def total_gpus(run: Run) -> float:
    return sum(claim.count * claim.gpus for claim in claims(run))


def namespace(run: Run) -> str:
    """Ray's namespace for a run's driver."""
    return f"engram-{run.name}"
