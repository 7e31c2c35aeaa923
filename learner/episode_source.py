"""Where a rank's episodes come from: the run's conductor. Every call has a deadline, and a failure
arrives as what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import ray

from common.actors.ask import ask, fetch, find
from common.episode import Episode
from common.failures import DataFailure
from common.weights import PackedWeights
from learner.parallel.group import Job
from learner.rollout_group import conductor_name
from rollout.conductor import Batch
from rollout.iterations import RolloutState
from rollout.tasks import Plan


@dataclass(frozen=True)
class Shard:
    """One rank's part of the batch of an iteration."""

    episodes: list[Episode]
    total: int
    """Tasks of the whole batch, those left out among them."""
    failed: int
    """Tasks of the whole batch that were left out."""
    failed_turns: int
    """Turns of the whole batch that have no score."""

    @property
    def indices(self) -> list[int]:
        """Index of each episode in the whole batch."""
        return [episode.batch_index for episode in self.episodes]


class EpisodeSource(Protocol):
    """The rollout half as a rank sees it: the conductor, or in a fast test an engine in its own
    process."""

    def publish(self, weights: PackedWeights) -> int:
        """Bring weights to all workers; how many took them. Rank 0 alone."""
        ...

    def collect(self, iteration: int, version: int, plan: Plan, rank: int, ranks: int) -> Shard:
        """This rank's episodes of an iteration, scored. Raises Unavailable where they cannot be
        scored for now."""
        ...

    def trained(self, iteration: int, version: int) -> None:
        """The batch was trained on. Rank 0 alone."""

    def state(self) -> RolloutState:
        """State after the last trained iteration, for `load_state`."""
        ...

    def load_state(self, state: RolloutState) -> None:
        """Go back to a checkpoint's state."""

    def metrics(self) -> dict[str, Any]:
        """Metrics of the rollout half since the last call, for `Metrics.merge`. Rank 0 alone."""
        ...


class ConductorSource:
    def __init__(self, job: Job):
        # An endpoint that is away holds a batch up, and is not the batch's fault.
        self._deadline = job.run.learner.batch_deadline + job.run.rewards.outage_patience()
        self._conductor = find(conductor_name(job.namespace), job.namespace)

    def publish(self, weights: PackedWeights) -> int:
        published = self._call("publish", weights.version, [ray.put(weights)])
        return len(published.acknowledged)

    def collect(self, iteration: int, version: int, plan: Plan, rank: int, ranks: int) -> Shard:
        batch: Batch = self._call("next_batch", iteration, version, rank, ranks, plan)
        parts = fetch(
            list(batch.shard),
            deadline=self._deadline,
            reason=f"the episodes of iteration {iteration}",
        )
        episodes = [episode for part in parts for episode in part]
        if not episodes:
            what = (
                f"iteration {iteration} left {batch.episodes} episodes of {plan.episodes} "
                f"for {ranks} learner ranks"
            )
            raise DataFailure(f"{what}: rank {rank} has nothing to learn from")
        return Shard(
            episodes,
            plan.episodes,
            batch.failed,
            batch.failed_turns,
        )

    def trained(self, iteration: int, version: int) -> None:
        self._call("mark_trained", iteration, version)

    def state(self) -> RolloutState:
        return self._call("state")

    def load_state(self, state: RolloutState) -> None:
        self._call("load_state", state)

    def metrics(self) -> dict[str, Any]:
        return self._call("metrics")

    def _call(self, method: str, *args: Any) -> Any:
        reason = f"the conductor to {method.replace('_', ' ')}"
        return ask(self._conductor, method, *args, deadline=self._deadline, reason=reason)
