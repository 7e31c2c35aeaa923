"""A pool of reward workers that survives them: every episode handed in comes back once, scored or with its failure set.

Infra failures are tried again on another worker; a batch whose data is at fault is divided until the episode at fault stands
alone. What cannot be scored comes back with reward None and the reason, never with a number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle

from common.actor_pool import ActorPool
from common.config.rewards import Rewards
from common.episode import Episode
from common.failures import DataFailure, InfraFailure
from common.metrics import Metrics
from common.resources import REWARD_WORKER_CPUS
from reward_service.compose import unscored
from reward_service.monitor import BatchMonitor
from reward_service.statistics import Statistics, after, from_json, to_json
from reward_service.worker import RewardWorker, record_rewards


def by_tokens(episodes: Sequence[Episode], limit: int) -> list[list[Episode]]:
    """The episodes in order, in batches of at most `limit` tokens; one that has more is a batch by itself."""
    batches: list[list[Episode]] = []
    room = 0
    for episode in episodes:
        tokens = sum(len(turn.query_ids) + len(turn.answer_ids) + len(turn.reference_ids) for turn in episode.turns)
        if tokens > room:
            batches.append([])
            room = limit
        batches[-1].append(episode)
        room -= tokens
    return batches


class RewardPool:
    """`rewards.workers` actors, one thread each. Arguments as for `RewardWorker`; the embedding goes through the object store once.

    To be used inside one running event loop; `close` ends the actors.
    """

    def __init__(self, rewards: Rewards, embedding: np.ndarray, special_ids: Collection[int], known_values: Collection[str] = ()):
        self._rewards = rewards
        # A worker that was killed takes up a shared reference again when Ray restarts it.
        self._embedding = ray.put(np.ascontiguousarray(embedding, dtype=np.float32))
        make: Any = ray.remote(RewardWorker).options(
            num_cpus=REWARD_WORKER_CPUS, num_gpus=rewards.gpus_per_worker, max_restarts=-1, max_task_retries=0
        )
        arguments = (rewards, self._embedding, frozenset(special_ids), frozenset(known_values))
        self.actors: list[ActorHandle] = [make.remote(*arguments) for _ in range(rewards.workers)]
        self._pool = ActorPool("rewards", self.actors)
        self._metrics = Metrics()
        self._monitor = BatchMonitor(self._metrics)
        self._waiting = 0

    async def score(self, episodes: Sequence[Episode], state: Mapping[str, Any]) -> list[Episode]:
        """The episodes in the same order, in batches of `rewards.batch_tokens` over all workers at once.

        state: what `after` gave for the iterations before; empty before the first.
        """
        statistics = from_json(state)
        batches = by_tokens(episodes, self._rewards.batch_tokens)
        self._waiting += len(episodes)
        try:
            return [episode for batch in await asyncio.gather(*(self._score(batch, statistics) for batch in batches)) for episode in batch]
        finally:
            self._waiting -= len(episodes)

    def after(self, state: Mapping[str, Any], episodes: Sequence[Episode]) -> dict[str, Any]:
        """The state for the next iteration, once these were trained on. JSON-ready; a function of its arguments.

        Records beside it what this whole batch shows (reward_service/monitor.py).
        """
        self._monitor.record(episodes)
        return to_json(after(from_json(state), episodes, self._rewards))

    async def _score(self, batch: list[Episode], statistics: Statistics) -> list[Episode]:
        reason = f"scoring {len(batch)} episodes from {batch[0].id}"
        try:
            scored: list[Episode] = await self._pool.call(
                "score", batch, statistics, deadline=self._rewards.deadline, retries=self._rewards.retries, reason=reason
            )
        except DataFailure as failure:
            if len(batch) == 1:
                return self._given_up(batch, failure)
            middle = len(batch) // 2
            first, second = await asyncio.gather(self._score(batch[:middle], statistics), self._score(batch[middle:], statistics))
            return first + second
        except InfraFailure as failure:
            return self._given_up(batch, failure)
        return scored

    def _given_up(self, batch: list[Episode], failure: Exception) -> list[Episode]:
        given_up = [unscored(episode, f"{type(failure).__name__}: {failure}") for episode in batch]
        record_rewards(self._metrics, given_up)
        return given_up

    def stats(self) -> dict[str, int]:
        """Counts of the pool's actors and calls (`ActorPool.stats`)."""
        return self._pool.stats()

    async def metrics(self) -> dict[str, Any]:
        """What the healthy workers and the pool itself recorded since the last call, for `Metrics.merge`.

        What a worker recorded since then and before it died is gone.
        """
        self._metrics.record("reward/queue", self._waiting)
        self._pool.record(self._metrics)
        for state in await self._pool.metrics_of_healthy(self._rewards.deadline):
            self._metrics.merge(state)
        return self._metrics.drain()

    async def close(self) -> None:
        await self._pool.close()
