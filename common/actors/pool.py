"""A pool of actors that survives them: each call goes to an actor in service, and after an infra
failure to another one.

`common/actors/health.py` decides which actor is in service, `queue.py` which call is next,
`dispatch.py` sends it, and `recovery.py` brings actors back into service.

Invariants: an actor that came back, or was added, is not eligible before `on_restored` finished for
it (invariant 6); no wait is without a deadline and a reason (invariant 7); a data failure is never
retried; an actor is not ended while a call is on it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import ray
from ray.actor import ActorHandle

from common.actors.dispatch import Bystander, Dispatcher
from common.actors.health import Health, Members, PoolCounts
from common.actors.queue import CallQueue, Reservation
from common.actors.recovery import Recovery
from common.failures import (
    CallLost,
    CallOverdue,
    DeadlineExceeded,
    EngramError,
    InfraFailure,
    Unavailable,
)
from common.telemetry.metrics import Metrics

IN_FLIGHT = 2
"""Calls that an actor is sent at once: the next one is there when it has finished one."""
PROBE_SECONDS = 5.0
"""Deadline of the question to an actor whether it is there."""

log = logging.getLogger(__name__)


class ActorPool:
    """Calls methods of actors, with a deadline, on whichever of them is in service and least
    loaded.

    actors: handles of `PooledActor`s with max_restarts; the pool owns them from here on and ends
    them in `close`.

    on_restored(actor): brings an actor that lost its state, or is new, up to date (through
    `call_actor`); the actor serves only after it returned, and is tried again where it raised. A
    call that misses its deadline takes its actor with it: the actor is killed and restarted,
    because an actor that hangs would never be free again.
    new: whether the first actors, too, are brought up to date by `on_restored` before they serve.
    most: actors that there will ever be at once, with those added. on_wait(seconds): told how long
    each try waited for a free actor.
    """

    def __init__(
        self,
        name: str,
        actors: Sequence[ActorHandle],
        on_restored: Callable[[int], Awaitable[None]] | None = None,
        *,
        most: int | None = None,
        new: bool = False,
        on_wait: Callable[[float], None] | None = None,
        probe_every: float = 0.5,
    ):
        self.name = name
        self.fleet = Members(range(len(actors)), IN_FLIGHT, new)
        self.counts = PoolCounts()
        self._recorded = PoolCounts()
        self._on_wait = on_wait
        self._most = len(actors) if most is None else most
        self._queue = CallQueue(self.fleet)
        self._dispatch = Dispatcher(
            name,
            actors,
            self.fleet,
            self.counts,
            # For every call in flight, a broadcast on top, metrics, and a probe: no call may wait
            # for a thread.
            threads=max(1, self._most) * (IN_FLIGHT + 3),
            on_lost=self._tend,
            on_room=self._queue.serve,
        )
        self._recovery = Recovery(
            name, self.fleet, self.counts, self._ping, on_restored, self._serves, probe_every
        )
        self._idle_since = dict.fromkeys(self._dispatch.handles, self._dispatch.progress)
        self._closed = False

    # --- calls ------------------------------------------------------------------------------------

    async def call(
        self,
        method: str,
        *args: Any,
        deadline: float,
        retries: int,
        reason: str,
        patience: float | None = None,
        retry_lost: bool = True,
        tried: Sequence[int] = (),
    ) -> Any:
        """Result of `method(*args)` on the least loaded eligible actor; after an infra failure, on
        another, `retries` more times.

        deadline: seconds for each try, and as much again for each call that the actor has before
        it. patience: waiting for a free actor is over when the pool made no progress for as long;
        None: three deadlines, for a call may stand behind another, and then their actor starts
        again. An ObjectRef among `args` arrives resolved. retry_lost: False if the caller handles
        calls itself that are overdue or lost with their actor (it splits the batch). tried: actors
        on which it failed before.
        Raises DataFailure (the input is to blame), Unavailable (which no other actor would mend),
        CallLost, CallOverdue, DeadlineExceeded or InfraFailure (of the last try).
        """
        self._recovery.tend()
        failed_on = list(tried)
        failed = 0
        while True:
            reserved = await self._free_actor(
                failed_on, 3 * deadline if patience is None else patience, reason
            )
            try:
                limit = deadline * (1 + reserved.ahead)
                return await self._dispatch.send(reserved, method, args, limit, reason)
            except Unavailable:
                raise
            except InfraFailure as failure:
                failed_on.append(reserved.actor)
                log.warning(
                    "pool %s: %s failed on actor %d: %s", self.name, reason, reserved.actor, failure
                )
                failed += not isinstance(failure, Bystander)
                given_back = isinstance(failure, CallLost | CallOverdue) and not retry_lost
                if failed > retries or given_back:
                    failure.add_note(f"failed {failed} times on pool {self.name}")
                    raise
                self.counts.retries += 1
            finally:
                self._idle_since[reserved.actor] = time.monotonic()

    async def call_actor(
        self, actor: int, method: str, *args: Any, deadline: float, reason: str
    ) -> Any:
        """The same on one actor, whatever its health, once: for `on_restored`."""
        self._check_open(reason)
        reserved = Reservation(actor, self.fleet.began(actor), units=1, ahead=0)
        return await self._dispatch.send(reserved, method, args, deadline, reason)

    async def broadcast(
        self, method: str, *args: Any, deadline: float, reason: str
    ) -> dict[int, Any]:
        """`method(*args)` on all healthy actors at once: what each returned, or its EngramError as
        a value.

        Announces new state: a refresh that is under way meanwhile is done again before its actor
        serves.
        """
        self._recovery.tend()
        self.fleet.announce()
        actors = self.fleet.having(Health.HEALTHY)
        sends = [
            self.call_actor(actor, method, *args, deadline=deadline, reason=reason)
            for actor in actors
        ]
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, EngramError):
                raise outcome
        return dict(zip(actors, outcomes, strict=True))

    def outdated(self, actor: int, why: str) -> None:
        """Take a healthy actor out of service until `on_restored` has brought it up to date."""
        self.fleet.outdated(actor, why)
        self._recovery.tend()

    async def _free_actor(self, tried: Sequence[int], patience: float, reason: str) -> Reservation:
        self._check_open(reason)
        began = time.monotonic()
        waiter = self._queue.join(began, tried)
        try:
            while not waiter.reserved.done():
                left = max(began, self._dispatch.progress) + patience - time.monotonic()
                if left <= 0 or self._closed:
                    break
                await asyncio.wait([waiter.reserved], timeout=left)
        except asyncio.CancelledError:
            self._queue.leave(waiter)
            raise
        waited = time.monotonic() - began
        reserved = waiter.reserved.result() if waiter.reserved.done() else None
        if reserved is None:
            self._queue.leave(waiter)
            self._check_open(reason)
            raise DeadlineExceeded(
                f"an actor of pool {self.name} for {reason}: "
                f"{self.fleet.describe() or 'pool is empty'}",
                waited,
            )
        if self._on_wait is not None:
            self._on_wait(waited)
        return reserved

    def _check_open(self, reason: str) -> None:
        if self._closed:
            raise InfraFailure(f"pool {self.name} is closed, {reason} was not done")

    # --- health -----------------------------------------------------------------------------------

    def _tend(self) -> None:
        self._recovery.tend()

    def _serves(self, actor: int) -> None:
        self._dispatch.serves(actor)
        self._idle_since[actor] = self._dispatch.progress
        self._queue.serve()

    async def _ping(self, actor: int) -> bool:
        return await self._dispatch.ping(actor, PROBE_SECONDS)

    # --- size -------------------------------------------------------------------------------------

    def add(self, handle: ActorHandle) -> int:
        """One more actor, which serves when it has answered and `on_restored` has returned. Nothing
        waits for it until then."""
        if len(self._dispatch.handles) >= self._most:
            raise ValueError(f"pool {self.name} was made for at most {self._most} actors")
        actor = self._dispatch.add(handle)
        self._idle_since[actor] = time.monotonic()
        self.fleet.add(actor)
        self.counts.added += 1
        self._recovery.tend()
        return actor

    def withdraw(self, actor: int) -> bool:
        """Send the actor nothing any more but what `call_actor` sends, until `end`. False, and
        nothing changes, while a call is on it."""
        return not self._dispatch.calls[actor] and self.fleet.withdraw(actor)

    async def end(self, actor: int) -> None:
        """End an actor that was withdrawn, for good."""
        await asyncio.to_thread(ray.kill, self._dispatch.handles[actor], no_restart=True)
        await self._recovery.finished_with(actor)
        self._dispatch.remove(actor)
        self.fleet.remove(actor)
        del self._idle_since[actor]
        self.counts.ended += 1

    def waiting_since(self) -> float | None:
        """When the call that has waited longest for a free actor began to (`time.monotonic`); None
        where none waits."""
        return self._queue.oldest()

    def idle_since(self) -> dict[int, float]:
        """Since when each actor that has nothing to do has been idle; metrics and broadcasts are no
        work. An actor may be idle as it starts."""
        free = self.fleet.having(Health.HEALTHY) + self.fleet.having(Health.STARTING)
        return {actor: self._idle_since[actor] for actor in free if not self._dispatch.calls[actor]}

    # --- the rest ---------------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """Counts: actors by health, calls in flight and waiting, and what happened since the
        pool was made."""
        states = {str(health): len(self.fleet.having(health)) for health in Health}
        in_flight = sum(map(len, self._dispatch.calls.values()))
        return {
            "actors": len(self._dispatch.handles),
            **states,
            "in_flight": in_flight,
            "waiting": len(self._queue),
            **asdict(self.counts),
        }

    def record(self, metrics: Metrics) -> None:
        """Workers by state as they are, and what was restored and tried again since the last
        call."""
        for health in Health:
            metrics.record(
                "fleet/workers", len(self.fleet.having(health)), pool=self.name, state=health
            )
        metrics.record(
            "fleet/restarts", self.counts.restored - self._recorded.restored, pool=self.name
        )
        retries = self.counts.retries - self._recorded.retries
        metrics.record("fleet/retries", retries, pool=self.name)
        self._recorded = replace(self.counts)

    async def metrics_of_healthy(self, deadline: float) -> list[dict[str, Any]]:
        return await self.metrics_of(self.fleet.having(Health.HEALTHY), deadline)

    async def metrics_of(self, actors: Sequence[int], deadline: float) -> list[dict[str, Any]]:
        """The result of each actor's `metrics()`. An actor that fails is passed over, and what it
        had recorded is lost."""
        calls = [
            self.call_actor(
                actor, "metrics", deadline=deadline, reason=f"metrics of pool {self.name}"
            )
            for actor in actors
        ]
        states = []
        for state in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(state, BaseException) and not isinstance(state, InfraFailure):
                raise state
            if not isinstance(state, BaseException):
                states.append(state)
        return states

    def actors(self) -> list[ActorHandle]:
        return list(self._dispatch.handles.values())

    async def close(self) -> None:
        """End the actors for good; calls in flight fail."""
        self._closed = True
        self._queue.close()
        await self._recovery.close()
        await self._dispatch.close()
