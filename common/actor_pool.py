"""An asyncio face over RLlib's `FaultTolerantActorManager`: who is eligible, who is tried next, and when a wait is over.

The manager sends calls, notices dead actors and probes them; `common/fleet.py` decides. Each call waits in a thread of its own
(at most `in_flight` per actor), so that neither a slow actor nor Ray's blocking calls hold up the event loop, and a result is
seen the moment it exists.

Invariants: an actor that came back is not eligible before `on_restored` finished for it (invariant 6); no wait is without a
deadline and a reason (invariant 7); a data failure is never retried.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from common.failures import DataFailure, DeadlineExceeded, EngramError, InfraFailure
from common.fleet import Fleet, Health
from common.metrics import Metrics
from common.pooled_actor import Invoke, RemoteFailure

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tally:
    """What happened in a pool since it was made."""

    calls: int = 0
    data_failures: int = 0
    infra_failures: int = 0
    missed_deadlines: int = 0
    retries: int = 0
    restored: int = 0
    failed_restores: int = 0


class ActorPool:
    """actors: handles of `PooledActor`s with max_restarts; the pool owns them from here on and ends them in `close`.

    on_restored(actor): brings an actor that lost its state up to date (through `call_actor`); the actor serves only after it
    returned, and is tried again where it raised. A call that misses its deadline takes its actor with it: the actor is killed and
    restarted, because an actor that hangs would keep its place for ever.
    """

    def __init__(
        self,
        name: str,
        actors: Sequence[ActorHandle],
        on_restored: Callable[[int], Awaitable[None]] | None = None,
        *,
        in_flight: int = 2,
        probe_every: float = 0.5,
        probe_deadline: float = 5.0,
    ):
        self.name = name
        self.fleet = Fleet(range(len(actors)), in_flight)
        self.tally = Tally()
        self._recorded = Tally()
        self._handles = list(actors)
        self._manager = FaultTolerantActorManager(self._handles, max_remote_requests_in_flight_per_actor=in_flight)
        self._on_restored = on_restored
        self._probe_every, self._probe_deadline = probe_every, probe_deadline
        # Room for every call in flight, a broadcast on top, and the probe: no call may wait for a thread.
        self._threads = ThreadPoolExecutor(len(self._handles) * (in_flight + 2) + 1, thread_name_prefix=f"pool-{name}")
        self._changed = asyncio.Event()
        self._progress = time.monotonic()
        self._nurse: asyncio.Task[None] | None = None
        self._refreshing: dict[int, asyncio.Task[None]] = {}
        self._waiting = 0
        self._closed = False

    # --- calls --------------------------------------------------------------------------------------------------------------

    async def call(self, method: str, *args: Any, deadline: float, retries: int, reason: str) -> Any:
        """Result of `method(*args)` on the least loaded eligible actor; after an infra failure, on another, `retries` more times.

        deadline: seconds for each try, once the actor gets to it; waiting for a free actor is over when the pool made no progress
        for as long. An ObjectRef among `args` arrives resolved.
        Raises DataFailure (the input is to blame), DeadlineExceeded or InfraFailure (of the last try).
        """
        self._tend()
        tried: list[int] = []
        while True:
            actor, life, ahead = await self._free_actor(tried, deadline, reason)
            try:
                return await self._send(actor, life, method, args, deadline * (1 + ahead), reason)
            except InfraFailure as failure:
                tried.append(actor)
                log.warning("pool %s: %s failed on actor %d: %s", self.name, reason, actor, failure)
                if len(tried) > retries or self._closed:
                    failure.add_note(f"tried {len(tried)} times on pool {self.name}")
                    raise
                self.tally.retries += 1

    async def call_actor(self, actor: int, method: str, *args: Any, deadline: float, reason: str) -> Any:
        """The same on one actor, whatever its health, once: for `on_restored`."""
        return await self._send(actor, self.fleet.began(actor), method, args, deadline, reason)

    async def broadcast(self, method: str, *args: Any, deadline: float, reason: str) -> dict[int, Any]:
        """`method(*args)` on all healthy actors at once: what each returned, or its EngramError as a value.

        Announces new state: a refresh that is under way meanwhile is done again before its actor serves.
        """
        self._tend()
        self.fleet.announce()
        actors = self.fleet.having(Health.HEALTHY)
        sends = [self.call_actor(actor, method, *args, deadline=deadline, reason=reason) for actor in actors]
        outcomes = await asyncio.gather(*sends, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, EngramError):
                raise outcome
        return dict(zip(actors, outcomes, strict=True))

    def outdated(self, actor: int, why: str) -> None:
        """Take a healthy actor out of service until `on_restored` has brought it up to date."""
        self.fleet.outdated(actor, why)
        self._tend()

    async def _free_actor(self, tried: Sequence[int], deadline: float, reason: str) -> tuple[int, int, int]:
        """(actor, life, calls before ours), reserved."""
        began = time.monotonic()
        self._waiting += 1
        try:
            while (actor := self.fleet.pick(tried)) is None:
                left = max(began, self._progress) + deadline - time.monotonic()
                if left <= 0 or self._closed:
                    waited = time.monotonic() - began
                    raise DeadlineExceeded(f"an actor of pool {self.name} for {reason}: {self.fleet.describe() or 'pool is empty'}", waited)
                self._changed.clear()
                try:
                    await asyncio.wait_for(self._changed.wait(), left)
                except TimeoutError:
                    continue
        finally:
            self._waiting -= 1
        ahead = self.fleet.members[actor].load
        return actor, self.fleet.began(actor), ahead

    async def _send(self, actor: int, life: int, method: str, args: tuple[Any, ...], deadline: float, reason: str) -> Any:
        self.tally.calls += 1
        loop = asyncio.get_running_loop()
        future: Future[Any] = self._threads.submit(self._wait_for_result, actor, method, args, deadline)

        def free(_: Future[Any]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._ended, actor, life)

        # By the thread, not by this coroutine: a cancelled caller leaves a call that is still running on the actor.
        future.add_done_callback(free)
        outcome = await asyncio.wrap_future(future)
        if outcome is _MISSED:
            self.tally.missed_deadlines += 1
            failure: EngramError = DeadlineExceeded(f"{reason} on actor {actor} of pool {self.name}", deadline)
            if self._bury(actor, life, str(failure)):
                await asyncio.to_thread(ray.kill, self._handles[actor], no_restart=False)
            raise failure
        if isinstance(outcome, RayError) and not _raised_by_application(outcome):
            self.tally.infra_failures += 1
            why = f"{reason}: {type(outcome).__name__} on actor {actor} of pool {self.name}"
            self._bury(actor, life, type(outcome).__name__)
            raise InfraFailure(why) from outcome
        self._progress = time.monotonic()
        if isinstance(outcome, RayError):
            # Outside `apply` (an argument or a result that does not pickle): the manager took the actor for sick, it is not.
            self._manager.set_actor_state(actor, healthy=self.fleet.members[actor].health is Health.HEALTHY)
            outcome = RemoteFailure(False, type(outcome).__name__, str(outcome), str(outcome))
        if isinstance(outcome, RemoteFailure):
            self.tally.infra_failures += outcome.infra
            self.tally.data_failures += not outcome.infra
            raised = (InfraFailure if outcome.infra else DataFailure)(f"{reason}: {outcome}")
            raised.add_note(outcome.traceback)
            raise raised
        return outcome

    def _wait_for_result(self, actor: int, method: str, args: tuple[Any, ...], deadline: float) -> Any:
        """In a thread: the result, a RayError as a value, or _MISSED."""
        results = self._manager.foreach_actor(
            Invoke(method), kwargs=Invoke.keywords(args), healthy_only=False, remote_actor_ids=[actor], timeout_seconds=deadline
        )
        return next((result.get() for result in results), _MISSED)

    # --- health -------------------------------------------------------------------------------------------------------------

    def _ended(self, actor: int, life: int) -> None:
        self.fleet.ended(actor, life)
        self._changed.set()

    def _bury(self, actor: int, life: int, why: str) -> bool:
        if not self.fleet.died(actor, life, why):
            return False
        self._manager.set_actor_state(actor, healthy=False)
        self._tend()
        return True

    def _tend(self) -> None:
        """Start the task that looks after the sick, where there are any."""
        if not self._closed and (self._nurse is None or self._nurse.done()) and len(self.fleet.having(Health.HEALTHY)) < len(self._handles):
            self._nurse = asyncio.create_task(self._look_after_the_sick(), name=f"pool-{self.name}-nurse")

    async def _look_after_the_sick(self) -> None:
        loop = asyncio.get_running_loop()
        while len(self.fleet.having(Health.HEALTHY)) < len(self._handles):
            if self.fleet.probing():
                answered = await loop.run_in_executor(self._threads, self._manager.probe_unhealthy_actors, self._probe_deadline)
                self.fleet.probed(answered)
            for actor in self.fleet.having(Health.STALE):
                if actor not in self._refreshing:
                    self._refreshing[actor] = asyncio.create_task(self._refresh(actor))
            await asyncio.sleep(self._probe_every)

    async def _refresh(self, actor: int) -> None:
        refresh = self.fleet.begin_refresh(actor)
        try:
            if self._on_restored is not None:
                await self._on_restored(actor)
        except EngramError as failure:
            self.tally.failed_restores += 1
            self.fleet.members[actor].why = f"restoring it failed: {failure}"
            log.warning("pool %s: actor %d stays out of service: %s", self.name, actor, failure)
        # The end of a background task: a bug in `on_restored` must be seen, and must not let the actor serve.
        except Exception as error:
            self.tally.failed_restores += 1
            self.fleet.members[actor].why = f"restoring it failed: {error!r}"
            log.exception("pool %s: actor %d stays out of service", self.name, actor)
        else:
            if self.fleet.refreshed(refresh):
                self.tally.restored += 1
                self._manager.set_actor_state(actor, healthy=True)
                self._progress = time.monotonic()
                self._changed.set()
        finally:
            del self._refreshing[actor]

    # --- the rest -----------------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """Counts: actors by health, calls in flight and waiting, and the tally since the pool was made."""
        states = {str(health): len(self.fleet.having(health)) for health in Health}
        in_flight = sum(member.load for member in self.fleet.members.values())
        return {"actors": len(self._handles), **states, "in_flight": in_flight, "waiting": self._waiting, **asdict(self.tally)}

    def record(self, metrics: Metrics) -> None:
        """Workers by state as they are, and what was restored and tried again since the last call."""
        for health in Health:
            metrics.record("fleet/workers", len(self.fleet.having(health)), pool=self.name, state=health)
        metrics.record("fleet/restarts", self.tally.restored - self._recorded.restored, pool=self.name)
        metrics.record("fleet/retries", self.tally.retries - self._recorded.retries, pool=self.name)
        self._recorded = replace(self.tally)

    async def metrics_of_healthy(self, deadline: float) -> list[dict[str, Any]]:
        """What each healthy actor's `metrics()` gives; one that fails is passed over, and what it had recorded is gone."""
        healthy = self.fleet.having(Health.HEALTHY)
        calls = [self.call_actor(actor, "metrics", deadline=deadline, reason=f"metrics of pool {self.name}") for actor in healthy]
        states = []
        for state in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(state, BaseException) and not isinstance(state, InfraFailure):
                raise state
            if not isinstance(state, BaseException):
                states.append(state)
        return states

    async def close(self) -> None:
        """End the actors for good; calls in flight fail."""
        self._closed = True
        self._changed.set()
        tasks = [task for task in (self._nurse, *self._refreshing.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for handle in self._handles:
            await asyncio.to_thread(ray.kill, handle, no_restart=True)
        self._threads.shutdown(wait=False)


class _Missed:
    """The deadline passed without a result."""


_MISSED = _Missed()


def _raised_by_application(error: RayError) -> bool:
    """A RayTaskError that carries no other RayError: an exception of our own code that escaped `apply`."""
    return isinstance(error, RayTaskError) and not isinstance(error.cause, RayError)
