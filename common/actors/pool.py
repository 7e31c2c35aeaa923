"""An asyncio face over RLlib's `FaultTolerantActorManager`: who is eligible, who is tried next, and
when a wait is over.

The manager sends calls and notices dead actors; `common/actors/health.py` decides,
`queue.py` says who is next and `recovery.py` brings actors into service. Each call waits in a
thread of its own (at most `in_flight` per actor), so that neither a slow actor nor Ray's blocking
calls hold up the event loop, and a result is seen the moment it exists.

Invariants: an actor that came back, or was added, is not eligible before `on_restored` finished for
it (invariant 6); no wait is without a deadline and a reason (invariant 7); a data failure is never
retried; an actor is not ended while a call is on it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayError, RayTaskError
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from common.actors.actor import Invoke, RemoteFailure
from common.actors.health import Health, Members, PoolCounts
from common.actors.queue import CallQueue, Reservation
from common.actors.recovery import Recovery
from common.failures import (
    CallLost,
    CallOverdue,
    DataFailure,
    DeadlineExceeded,
    EngramError,
    InfraFailure,
    Unavailable,
)
from common.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class ActorPool:
    """actors: handles of `PooledActor`s with max_restarts; the pool owns them from here on and ends
    them in `close`.

    on_restored(actor): brings an actor that lost its state, or is new, up to date (through
    `call_actor`); the actor serves only after it returned, and is tried again where it raised. A
    call that misses its deadline takes its actor with it: the actor is killed and restarted,
    because an actor that hangs would keep its place for ever.
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
        in_flight: int = 2,
        probe_every: float = 0.5,
        probe_deadline: float = 5.0,
    ):
        self.name = name
        self.fleet = Members(range(len(actors)), in_flight, new)
        self.tally = PoolCounts()
        self._recorded = PoolCounts()
        self._handles = dict(enumerate(actors))
        self._manager = FaultTolerantActorManager(
            list(actors), max_remote_requests_in_flight_per_actor=in_flight
        )
        self._on_wait = on_wait
        self._probe_deadline = probe_deadline
        self._most = len(actors) if most is None else most
        # Room for every call in flight, a broadcast on top, metrics, and a probe: no call may wait
        # for a thread.
        self._threads = ThreadPoolExecutor(
            max(1, self._most) * (in_flight + 3), thread_name_prefix=f"pool-{name}"
        )
        self._line = CallQueue(self.fleet)
        self._recovery = Recovery(
            name, self.fleet, self.tally, self._ping, on_restored, self._serves, probe_every
        )
        self._progress = time.monotonic()
        self._numbers = itertools.count()
        self._calls: dict[int, dict[int, _Sent]] = {actor: {} for actor in self._handles}
        """Of each actor, the calls whose thread still waits, by number."""
        self._idle_since = dict.fromkeys(self._handles, self._progress)
        self._on: dict[int, int] = {}
        """The call that each actor was on when it was last lost. The calls that stood behind it
        have not had their try."""
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
        again. An ObjectRef among `args` arrives resolved. retry_lost: False for a caller that sees
        itself to a call that is overdue or lost with its actor, because it divides it. tried:
        actors on which it failed before.
        Raises DataFailure (the input is to blame), Unavailable (which no other actor would mend),
        CallLost, CallOverdue, DeadlineExceeded or InfraFailure (of the last try).
        """
        self._recovery.tend()
        failed_on = list(tried)
        failed = 0
        while True:
            place = await self._free_actor(
                failed_on, 3 * deadline if patience is None else patience, reason
            )
            try:
                return await self._send(place, method, args, deadline * (1 + place.ahead), reason)
            except Unavailable:
                raise
            except InfraFailure as failure:
                failed_on.append(place.actor)
                log.warning(
                    "pool %s: %s failed on actor %d: %s", self.name, reason, place.actor, failure
                )
                failed += not isinstance(failure, _Bystander)
                given_back = isinstance(failure, CallLost | CallOverdue) and not retry_lost
                if failed > retries or given_back:
                    failure.add_note(f"failed {failed} times on pool {self.name}")
                    raise
                self.tally.retries += 1
            finally:
                self._idle_since[place.actor] = time.monotonic()

    async def call_actor(
        self, actor: int, method: str, *args: Any, deadline: float, reason: str
    ) -> Any:
        """The same on one actor, whatever its health, once: for `on_restored`."""
        return await self._send(
            Reservation(actor, self.fleet.began(actor), places=1, ahead=0),
            method,
            args,
            deadline,
            reason,
        )

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
        waiter = self._line.join(began, tried)
        try:
            while not waiter.place.done():
                left = max(began, self._progress) + patience - time.monotonic()
                if left <= 0 or self._closed:
                    break
                await asyncio.wait([waiter.place], timeout=left)
        except asyncio.CancelledError:
            self._line.leave(waiter)
            raise
        waited = time.monotonic() - began
        place = waiter.place.result() if waiter.place.done() else None
        if place is None:
            self._line.leave(waiter)
            self._check_open(reason)
            raise DeadlineExceeded(
                f"an actor of pool {self.name} for {reason}: "
                f"{self.fleet.describe() or 'pool is empty'}",
                waited,
            )
        if self._on_wait is not None:
            self._on_wait(waited)
        return place

    def _check_open(self, reason: str) -> None:
        if self._closed:
            raise InfraFailure(f"pool {self.name} is closed, {reason} was not done")

    async def _send(
        self, place: Reservation, method: str, args: tuple[Any, ...], deadline: float, reason: str
    ) -> Any:
        self._check_open(reason)
        loop, actor, due = asyncio.get_running_loop(), place.actor, time.monotonic() + deadline
        sent = _Sent(
            place,
            next(self._numbers),
            deadline,
            due,
            f"{reason} on actor {actor} of pool {self.name}",
            loop.create_future(),
        )
        self.tally.calls += 1
        self._calls[actor][sent.number] = sent

        def ended(future: Future[Any]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._ended, sent, future)

        # By the thread, not by this coroutine: a cancelled caller leaves a call that is still
        # running on the actor.
        self._threads.submit(
            self._wait_for_result, actor, method, args, deadline
        ).add_done_callback(ended)
        outcome, blamed = await sent.answer
        if outcome is _MISSED:
            raise (
                CallOverdue(sent.reason, deadline, actor)
                if blamed
                else _Bystander(f"{sent.reason}: overdue behind another")
            )
        if _says_lost(outcome):
            self.tally.infra_failures += 1
            why = f"{sent.reason}: {type(outcome).__name__}"
            raise (CallLost(why, actor) if blamed else _Bystander(why)) from outcome
        self._progress = time.monotonic()
        if isinstance(outcome, RayError):
            # Outside `apply` (an argument or a result that does not pickle): the manager took the
            # actor for sick, it is not.
            self._manager.set_actor_state(
                actor, healthy=self.fleet.members[actor].health is Health.HEALTHY
            )
            outcome = RemoteFailure(False, type(outcome).__name__, str(outcome), str(outcome))
        if isinstance(outcome, RemoteFailure):
            self.tally.infra_failures += outcome.infra
            self.tally.data_failures += not outcome.infra
            if outcome.unavailable is not None:
                raise outcome.unavailable
            raised = (InfraFailure if outcome.infra else DataFailure)(f"{reason}: {outcome}")
            raised.add_note(outcome.traceback)
            raise raised
        return outcome

    def _wait_for_result(
        self, actor: int, method: str, args: tuple[Any, ...], deadline: float
    ) -> Any:
        """In a thread: the result, a RayError as a value, or _MISSED."""
        results = self._manager.foreach_actor(
            Invoke(method),
            kwargs=Invoke.keywords(args),
            healthy_only=False,
            remote_actor_ids=[actor],
            timeout_seconds=deadline,
        )
        return next((result.get() for result in results), _MISSED)

    # --- health -----------------------------------------------------------------------------------

    def _ended(self, sent: _Sent, future: Future[Any]) -> None:
        """A thread has what became of a call, whether somebody still waits for it or not."""
        actor, life = sent.place.actor, sent.place.life
        # An actor has one thread, first come, first served, so it was on the call that was sent
        # first of those without an answer. Nearly
        # always: an answer on its way is lost as well, and of two calls sent at once the second may
        # have arrived first. All of them are tried again with nothing behind them
        # (`CallQueue.serve`), which tells.
        calls = self._calls[actor]
        on = min(number for number, other in calls.items() if other.place.life == life)
        # Metrics do not wait as long as they may stand behind what they stand behind.
        overdue = on if calls[on].due <= time.monotonic() else sent.number
        del calls[sent.number]
        self.fleet.ended(actor, life, sent.place.places)
        bug = future.exception()
        outcome = None if bug else future.result()
        if outcome is _MISSED:
            self.tally.missed_deadlines += 1
            if (
                self._bury(actor, life, str(DeadlineExceeded(sent.reason, sent.deadline)), overdue)
                and not self._closed
            ):
                self._threads.submit(self._kill, self._handles[actor])
            self._settle_lost(sent, outcome)
        elif _says_lost(outcome):
            self._bury(
                actor,
                life,
                type(outcome).__name__,
                sent.number if isinstance(outcome, ObjectLostError | RayTaskError) else on,
            )
            self._settle_lost(sent, outcome)
        self._line.serve()
        if sent.answer.done():
            return
        if bug is not None:
            sent.answer.set_exception(bug)
        else:
            sent.answer.set_result((outcome, self._on.get(actor) == sent.number))

    def _kill(self, handle: ActorHandle) -> None:
        try:
            ray.kill(handle, no_restart=False)
        # The end of a thread: whatever it is must be seen.
        except Exception:
            log.exception("pool %s: %s is overdue and could not be ended", self.name, handle)

    def _bury(self, actor: int, life: int, why: str, on: int) -> bool:
        """on: the call that it was on. False: that life is over already, nothing changes."""
        if not self.fleet.died(actor, life, why):
            return False
        self._on[actor] = on
        self._manager.set_actor_state(actor, healthy=False)
        self._recovery.tend()
        return True

    def _settle_lost(self, sent: _Sent, outcome: Any) -> None:
        """End the call and all others of that life of the actor. Ray may tell a thread of the loss
        when the actor serves again already: those calls are to be in line before it does, in front
        of those that have had no try."""
        actor, life = sent.place.actor, sent.place.life
        for other in (sent, *self._calls[actor].values()):
            if other.place.life == life and not other.answer.done():
                other.answer.set_result((outcome, self._on.get(actor) == other.number))

    def _serves(self, actor: int) -> None:
        self._manager.set_actor_state(actor, healthy=True)
        self._idle_since[actor] = self._progress = time.monotonic()
        self._line.serve()

    async def _ping(self, actor: int) -> bool:
        def answers() -> bool:
            # By itself, and not with all others that are out of service: one that has no place on
            # the cluster keeps silent for ever.
            results = self._manager.foreach_actor(
                Invoke("ping"),
                kwargs={},
                healthy_only=False,
                remote_actor_ids=[actor],
                timeout_seconds=self._probe_deadline,
            )
            return any(result.ok for result in results)

        return await asyncio.get_running_loop().run_in_executor(self._threads, answers)

    # --- size -------------------------------------------------------------------------------------

    def add(self, handle: ActorHandle) -> int:
        """One more actor, which serves when it has answered and `on_restored` has returned. Nothing
        waits for it until then."""
        if len(self._handles) >= self._most:
            raise ValueError(f"pool {self.name} was made for at most {self._most} actors")
        self._manager.add_actors([handle])
        actor = self._manager.actor_ids()[-1]
        self._manager.set_actor_state(actor, healthy=False)
        self._handles[actor], self._calls[actor], self._idle_since[actor] = (
            handle,
            {},
            time.monotonic(),
        )
        self.fleet.add(actor)
        self.tally.added += 1
        self._recovery.tend()
        return actor

    def withdraw(self, actor: int) -> bool:
        """Send the actor nothing any more but what `call_actor` sends, until `end`. False, and
        nothing changes, while a call is on it."""
        return not self._calls[actor] and self.fleet.withdraw(actor)

    async def end(self, actor: int) -> None:
        """End an actor that was withdrawn, for good."""
        await asyncio.to_thread(ray.kill, self._handles[actor], no_restart=True)
        await self._recovery.finished_with(actor)
        self._manager.remove_actor(actor)
        self.fleet.remove(actor)
        del self._handles[actor], self._calls[actor], self._idle_since[actor]
        self._on.pop(actor, None)
        self.tally.ended += 1

    def waiting_since(self) -> float | None:
        """When the call that has waited longest for a free actor began to (`time.monotonic`); None
        where none waits."""
        return self._line.oldest()

    def idle_since(self) -> dict[int, float]:
        """Of every actor that has nothing to do, from when on; metrics and broadcasts are no work.
        An actor may be idle as it starts."""
        free = self.fleet.having(Health.HEALTHY) + self.fleet.having(Health.STARTING)
        return {actor: self._idle_since[actor] for actor in free if not self._calls[actor]}

    # --- the rest ---------------------------------------------------------------------------------

    def stats(self) -> dict[str, int]:
        """Counts: actors by health, calls in flight and waiting, and the tally since the pool was
        made."""
        states = {str(health): len(self.fleet.having(health)) for health in Health}
        in_flight = sum(map(len, self._calls.values()))
        return {
            "actors": len(self._handles),
            **states,
            "in_flight": in_flight,
            "waiting": len(self._line),
            **asdict(self.tally),
        }

    def record(self, metrics: Metrics) -> None:
        """Workers by state as they are, and what was restored and tried again since the last
        call."""
        for health in Health:
            metrics.record(
                "fleet/workers", len(self.fleet.having(health)), pool=self.name, state=health
            )
        metrics.record(
            "fleet/restarts", self.tally.restored - self._recorded.restored, pool=self.name
        )
        metrics.record("fleet/retries", self.tally.retries - self._recorded.retries, pool=self.name)
        self._recorded = replace(self.tally)

    async def metrics_of_healthy(self, deadline: float) -> list[dict[str, Any]]:
        return await self.metrics_of(self.fleet.having(Health.HEALTHY), deadline)

    async def metrics_of(self, actors: Sequence[int], deadline: float) -> list[dict[str, Any]]:
        """What each actor's `metrics()` gives; one that fails is passed over, and what it had
        recorded is gone."""
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
        return list(self._handles.values())

    async def close(self) -> None:
        """End the actors for good; calls in flight fail."""
        self._closed = True
        self._line.close()
        await self._recovery.close()
        for handle in self._handles.values():
            await asyncio.to_thread(ray.kill, handle, no_restart=True)
        self._threads.shutdown(wait=False)


class _Sent(NamedTuple):
    """A call that an actor was sent."""

    place: Reservation
    number: int
    deadline: float
    due: float
    reason: str
    answer: asyncio.Future[tuple[Any, bool]]
    """What became of it (`_wait_for_result`), and whether it is to blame where the actor was
    lost."""


class _Bystander(InfraFailure):
    """The actor was lost while on another call. No try of this one: a call that costs every actor
    it is on would fail those behind it."""


class _Missed:
    """The deadline passed without a result."""


_MISSED = _Missed()


def _says_lost(outcome: Any) -> bool:
    """Whether it is Ray's error that an actor is not there any more, and not an exception of our
    own code that escaped `apply`."""
    of_application = isinstance(outcome, RayTaskError) and not isinstance(outcome.cause, RayError)
    return isinstance(outcome, RayError) and not of_application
