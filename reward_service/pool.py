"""A pool of reward workers that survives them: every episode handed in comes back once, scored or
with its failure set.

Infra failures are tried again on another worker; a batch whose data is at fault, that takes too
long, or whose worker dies is divided, until an episode that is to blame stands alone. What cannot
be scored comes back with reward None and the reason, never with a number. What is away for a while,
an endpoint, is waited for here, where nothing is held up by it (`outages.py`); no turn fails for
it. One that answers, and fails, may do so because of the batch, which is divided as well. Where the
settings allow more workers than there must be, some are started while batches wait and ended when
they are idle (`autoscaler.py`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle

from common.actors.pool import ActorPool
from common.actors.resources import REWARD_WORKER_CPUS
from common.config.rewards import Rewards
from common.episode import Episode, Verdict
from common.failures import CallLost, CallOverdue, DataFailure, InfraFailure, Unavailable
from common.telemetry.metrics import Metrics
from reward_service.autoscaler import Scaling
from reward_service.compose import unscored
from reward_service.copies import copy_gains
from reward_service.monitor import BatchMonitor
from reward_service.normalization import Statistics, after, from_json, to_json
from reward_service.outages import Outages
from reward_service.preflight import has_to_open
from reward_service.worker import RewardWorker, record_rewards

log = logging.getLogger(__name__)

PROBE_EVERY = 0.1
"""Seconds between two questions to a worker that died, whether it is back: it has nothing to load,
and work may wait for it."""
STARTING = 60.0
"""Seconds that a worker with nothing to open may take to start, on a machine that is busy with
something else."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds before an episode of which an endpoint fails is tried again; each is twice the one
before."""
OFFENDERS = 4
"""Episodes of one batch that may each end its workers without costing others of the batch their
score."""
SLOW_CALL, SLOWER = 1.0, 1.25
"""A scoring call is named in the log where it took so many seconds, and so many times what the
slowest before it took."""
LOOKS = 4
"""Looks at the size of the pool within `queue_seconds`: a worker is started late by a quarter of
them at most."""


def by_tokens(episodes: Sequence[Episode], limit: int) -> list[list[Episode]]:
    """The episodes in order, in batches of at most `limit` tokens; one that has more is a batch by
    itself."""
    batches: list[list[Episode]] = []
    room = 0
    for episode in episodes:
        tokens = sum(
            len(turn.query_ids) + len(turn.answer_ids) + len(turn.reference_ids)
            for turn in episode.turns
        )
        if tokens > room:
            batches.append([])
            room = limit
        batches[-1].append(episode)
        room -= tokens
    return batches


@dataclass
class _Losses:
    """Losses that a batch and its parts may still cause: where every part costs a worker, trying
    all of them would take hours."""

    left: int

    def allow_another(self) -> bool:
        self.left -= 1
        return self.left > 0


class RewardPool:
    """`rewards.workers` actors, one thread each. Arguments as for `RewardWorker`; the embedding
    goes through the object store once.

    tell: takes a line about what is being waited for. To be used inside one running event loop;
    `close` ends the actors.
    """

    def __init__(
        self,
        rewards: Rewards,
        embedding: np.ndarray,
        special_ids: Collection[int],
        known_values: Collection[str] = (),
        tell: Callable[[str], None] | None = None,
    ):
        self._rewards = rewards
        self._outages = Outages(tell)
        # A worker that was killed takes up a shared reference again when Ray restarts it.
        self._embedding = ray.put(np.ascontiguousarray(embedding, dtype=np.float32))
        self._arguments = (
            rewards,
            self._embedding,
            frozenset(special_ids),
            frozenset(known_values),
        )
        self._numbers = count()
        self._starting = rewards.start_deadline if has_to_open(rewards) else STARTING
        self._metrics = Metrics()
        self._monitor = BatchMonitor(self._metrics)
        self._embedding_here = embedding
        self._most = max(rewards.workers, rewards.max_workers or 0)
        self._pool = ActorPool(
            "rewards",
            [self._start() for _ in range(rewards.workers)],
            self._prepare if has_to_open(rewards) else None,
            new=has_to_open(rewards),
            most=self._most,
            on_wait=lambda seconds: self._metrics.record("reward/queue_seconds", seconds),
            probe_every=PROBE_EVERY,
        )
        self._scaling = Scaling(rewards.workers, self._most, rewards.queue_seconds)
        self._keeping_size: asyncio.Task[None] | None = None
        self._waiting = 0
        self._named_from = SLOW_CALL

    @property
    def actors(self) -> list[ActorHandle]:
        """The workers that there are now, whatever their health."""
        return self._pool.actors()

    def _start(self) -> ActorHandle:
        make: Any = ray.remote(RewardWorker).options(
            num_cpus=REWARD_WORKER_CPUS,
            num_gpus=self._rewards.gpus_per_worker,
            label_selector=self._rewards.node_labels,
            max_restarts=-1,
            max_task_retries=0,
        )
        handle: ActorHandle = make.remote(*self._arguments, next(self._numbers))
        return handle

    async def _prepare(self, actor: int) -> None:
        """Open what rewards need. It may take longer than a call may take, so a worker serves only
        afterwards."""
        await self._pool.call_actor(
            actor,
            "prepare",
            deadline=self._rewards.start_deadline,
            reason="opening what rewards need",
        )

    def patience(self, episodes: Sequence[Episode]) -> float:
        """Seconds to wait for all of it: every batch one after another, each with its allowance of
        losses, and restarts between them."""
        losses = sum(
            self._may_cost(batch) for batch in by_tokens(episodes, self._rewards.batch_tokens)
        )
        # A call may stand behind another one of its actor.
        return (
            losses * (2 * self._rewards.call_deadline() + self._starting)
            + self._rewards.outage_patience()
        )

    def _may_cost(self, batch: Sequence[Episode]) -> int:
        """Workers lost to a batch before its parts have but one try each: what so many episodes
        cost, each until it was tried alone."""
        return OFFENDERS * (math.ceil(math.log2(len(batch))) + 1 + self._rewards.retries)

    async def score(self, episodes: Sequence[Episode], state: Mapping[str, Any]) -> list[Episode]:
        """The episodes in the same order, in batches of `rewards.batch_tokens` over all workers at
        once.

        state: what `after` gave for the iterations before; empty before the first.
        Raises Unavailable where an endpoint is away for longer than its patience: then no turn is
        at fault.
        """
        statistics = from_json(state)
        batches = by_tokens(episodes, self._rewards.batch_tokens)
        self._waiting += len(episodes)
        self._tend_size()
        try:
            judged = await asyncio.gather(
                *(
                    self._judge(batch, statistics, _Losses(self._may_cost(batch)))
                    for batch in batches
                )
            )
        finally:
            self._waiting -= len(episodes)
        verdicts = chain.from_iterable(judged)
        return [episode.judged(own) for episode, own in zip(episodes, verdicts, strict=True)]

    def after(self, state: Mapping[str, Any], episodes: Sequence[Episode]) -> dict[str, Any]:
        """The state for the next iteration, once these were trained on. JSON-ready; a function of
        its arguments and the settings."""
        return to_json(after(from_json(state), episodes, self._rewards))

    def observe(self, state: Mapping[str, Any], episodes: Sequence[Episode]) -> None:
        """Record what the whole batch of an iteration, which was scored with `state`, shows
        (reward_service/monitor.py)."""
        rewards, _, special_ids, known_values = self._arguments
        gains = copy_gains(
            episodes, rewards, self._embedding_here, special_ids, known_values, from_json(state)
        )
        self._monitor.record(episodes, gains)

    async def _judge(
        self,
        batch: list[Episode],
        statistics: Statistics,
        losses: _Losses,
        tried: Sequence[int] = (),
    ) -> list[list[Verdict]]:
        """tried: workers that were lost to a batch that this is a part of."""
        failed_on, reason = list(tried), f"scoring {len(batch)} episodes from {batch[0].id}"
        tries = 1 + self._rewards.retries if len(batch) == 1 else 1
        for number in range(tries):
            try:
                verdicts: list[list[Verdict]]
                seconds: dict[str, float]
                verdicts, seconds = await self._outages.through(
                    partial(
                        self._pool.call,
                        "judge",
                        batch,
                        statistics,
                        deadline=self._rewards.call_deadline(),
                        retries=self._rewards.retries,
                        reason=reason,
                        # Nothing may be done while one call is overdue that stood behind another,
                        # and their worker starts again.
                        patience=2 * self._rewards.call_deadline() + self._starting,
                        retry_lost=False,
                        tried=failed_on,
                    )
                )
            except DataFailure as at_fault:
                failure: Exception = at_fault
                break
            except (CallLost, CallOverdue) as lost:
                failure = lost
                failed_on.append(lost.actor)
                if not losses.allow_another():
                    return self._given_up(batch, lost)
            except Unavailable as failing:
                if not failing.of_batch:
                    raise
                failure = failing
                if not losses.allow_another():
                    return self._given_up(batch, failing)
                if number < tries - 1:
                    await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2**number))
            except InfraFailure as infra:
                return self._given_up(batch, infra)
            else:
                self._name_where_slow(batch, seconds)
                return verdicts
        if len(batch) == 1:
            return self._given_up(batch, failure)
        middle = len(batch) // 2
        parts = (batch[:middle], batch[middle:])
        first, second = await asyncio.gather(
            *(self._judge(part, statistics, losses, failed_on) for part in parts)
        )
        return first + second

    def _name_where_slow(self, batch: Sequence[Episode], seconds: Mapping[str, float]) -> None:
        """Log the episodes of a call that is slower than all before it, with its slowest component.
        A metric cannot tell: there are as many ids as episodes."""
        if (whole := sum(seconds.values())) < self._named_from:
            return
        self._named_from = whole * SLOWER
        component = max(seconds, key=seconds.__getitem__)
        until = "" if len(batch) == 1 else f" to {batch[-1].id}, {len(batch)} episodes"
        log.info(
            "the slowest scoring call so far took %.1f s, %s %.1f s of them: %s%s",
            whole,
            component,
            seconds[component],
            batch[0].id,
            until,
        )

    def stop_waiting(self) -> None:
        """Give up what waits for an endpoint that is away: the run is to stop."""
        self._outages.stop_waiting()

    def waiting_for(self) -> list[str]:
        """Endpoints that are away, and for how long."""
        return self._outages.describe()

    def _given_up(self, batch: list[Episode], failure: Exception) -> list[list[Verdict]]:
        given_up = [unscored(episode, f"{type(failure).__name__}: {failure}") for episode in batch]
        record_rewards(self._metrics, given_up)
        return given_up

    # --- size -------------------------------------------------------------------------------------

    def _tend_size(self) -> None:
        if self._most == self._rewards.workers:
            return
        if self._keeping_size is not None and self._keeping_size.done():
            # Where it ended by a bug, that must be seen.
            self._keeping_size.result()
            self._keeping_size = None
        if self._keeping_size is None:
            self._keeping_size = asyncio.create_task(self._keep_size(), name="reward-pool-size")

    async def _keep_size(self) -> None:
        """Start and end workers until there is no work and none more than there must be."""
        members = self._pool.fleet.members
        while self._waiting or len(members) > self._rewards.workers:
            starting = sum(not member.served for member in members.values())
            idle = self._pool.idle_since()
            longest = min(idle, key=idle.__getitem__, default=-1)
            wants = self._scaling.wants(
                time.monotonic(),
                len(members),
                starting,
                self._pool.waiting_since(),
                idle.get(longest),
            )
            if wants > 0:
                self._pool.add(self._start())
                log.info("batches wait: started a reward worker more, %d in all", len(members))
            elif wants < 0 and self._pool.withdraw(longest):
                # What it recorded would go with it; one that never served might not answer.
                served = [longest] if members[longest].served else []
                for state in await self._pool.metrics_of(served, self._rewards.deadline):
                    self._metrics.merge(state)
                await self._pool.end(longest)
                log.info("ended an idle reward worker, %d are left", len(members))
            await asyncio.sleep(self._rewards.queue_seconds / LOOKS)

    def stats(self) -> dict[str, int]:
        """Counts of the pool's actors and calls (`ActorPool.stats`)."""
        return self._pool.stats()

    async def metrics(self) -> dict[str, Any]:
        """The metrics that the healthy workers and the pool recorded since the last call, for
        `Metrics.merge`.

        Metrics of a worker that died are lost."""
        self._metrics.record("reward/queue", self._waiting)
        self._pool.record(self._metrics)
        for state in await self._pool.metrics_of_healthy(self._rewards.deadline):
            self._metrics.merge(state)
        return self._metrics.drain()

    async def close(self) -> None:
        if self._keeping_size is not None:
            self._keeping_size.cancel()
            await asyncio.wait([self._keeping_size])
        await self._pool.close()
