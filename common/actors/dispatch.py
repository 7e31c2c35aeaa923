"""Sends calls to the actors of a pool and says what became of each.

Calls go through RLlib's `FaultTolerantActorManager`, which notices dead actors. It waits in rounds
and blocks, so each call waits in a thread of its own: neither a slow actor nor Ray's blocking calls
hold up the event loop, and a result is seen the moment it exists. Where an actor is lost, all calls
on it end at once, and the one that it was on is told from those behind it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayError, RayTaskError
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from common.actors.actor import Invoke, RemoteFailure
from common.actors.health import Health, Members, PoolCounts
from common.actors.queue import Reservation
from common.failures import CallLost, CallOverdue, DataFailure, DeadlineExceeded, InfraFailure

log = logging.getLogger(__name__)


class Dispatcher:
    """actors: their handles, numbered from 0. threads: enough for every call in flight.

    on_lost(): called when an actor was lost. on_room(): called when an actor has room again.
    """

    def __init__(
        self,
        name: str,
        actors: Sequence[ActorHandle],
        members: Members,
        counts: PoolCounts,
        threads: int,
        on_lost: Callable[[], None],
        on_room: Callable[[], None],
    ):
        self._name, self._members, self._counts = name, members, counts
        self._on_lost, self._on_room = on_lost, on_room
        self._manager = FaultTolerantActorManager(
            list(actors), max_remote_requests_in_flight_per_actor=members.capacity
        )
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"pool-{name}")
        self._numbers = itertools.count()
        self.handles = dict(enumerate(actors))
        self.calls: dict[int, dict[int, _Sent]] = {actor: {} for actor in self.handles}
        """For each actor, the calls whose thread still waits, by number."""
        self.progress = time.monotonic()
        """When a result last arrived, or an actor last came into service."""
        self._on: dict[int, int] = {}
        """The call that each actor was on when it was last lost. The calls that stood behind it
        have not had their try."""
        self._closed = False

    async def send(
        self,
        reserved: Reservation,
        method: str,
        args: tuple[Any, ...],
        deadline: float,
        reason: str,
    ) -> Any:
        """Result of `method(*args)` on the reserved actor. Raises as `ActorPool.call`, and
        `Bystander`."""
        loop, actor, due = asyncio.get_running_loop(), reserved.actor, time.monotonic() + deadline
        sent = _Sent(
            reserved,
            next(self._numbers),
            deadline,
            due,
            f"{reason} on actor {actor} of pool {self._name}",
            loop.create_future(),
        )
        self._counts.calls += 1
        self.calls[actor][sent.number] = sent

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
                else Bystander(f"{sent.reason}: overdue behind another")
            )
        if _says_lost(outcome):
            self._counts.infra_failures += 1
            why = f"{sent.reason}: {type(outcome).__name__}"
            raise (CallLost(why, actor) if blamed else Bystander(why)) from outcome
        self.progress = time.monotonic()
        if isinstance(outcome, RayError):
            # Outside `apply` (an argument or a result that does not pickle): the manager took the
            # actor for sick, it is not.
            self._manager.set_actor_state(
                actor, healthy=self._members.members[actor].health is Health.HEALTHY
            )
            outcome = RemoteFailure(False, type(outcome).__name__, str(outcome), str(outcome))
        if isinstance(outcome, RemoteFailure):
            self._counts.infra_failures += outcome.infra
            self._counts.data_failures += not outcome.infra
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

    def _ended(self, sent: _Sent, future: Future[Any]) -> None:
        """A thread has what became of a call, whether somebody still waits for it or not."""
        actor, life = sent.reserved.actor, sent.reserved.life
        # An actor has one thread, first come, first served, so it was on the call that was sent
        # first of those without an answer. Nearly
        # always: an answer on its way is lost as well, and of two calls sent at once the second may
        # have arrived first. All of them are tried again with nothing behind them
        # (`CallQueue.serve`), which tells.
        calls = self.calls[actor]
        on = min(number for number, other in calls.items() if other.reserved.life == life)
        # Metrics do not wait as long as they may stand behind what they stand behind.
        overdue = on if calls[on].due <= time.monotonic() else sent.number
        del calls[sent.number]
        self._members.ended(actor, life, sent.reserved.units)
        bug = future.exception()
        outcome = None if bug else future.result()
        if outcome is _MISSED:
            self._counts.missed_deadlines += 1
            if (
                self._bury(actor, life, str(DeadlineExceeded(sent.reason, sent.deadline)), overdue)
                and not self._closed
            ):
                self._threads.submit(self._kill, self.handles[actor])
            self._settle_lost(sent, outcome)
        elif _says_lost(outcome):
            self._bury(
                actor,
                life,
                type(outcome).__name__,
                sent.number if isinstance(outcome, ObjectLostError | RayTaskError) else on,
            )
            self._settle_lost(sent, outcome)
        self._on_room()
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
            log.exception("pool %s: %s is overdue and could not be ended", self._name, handle)

    def _bury(self, actor: int, life: int, why: str, on: int) -> bool:
        """on: the call that it was on. False: that life is over already, nothing changes."""
        if not self._members.died(actor, life, why):
            return False
        self._on[actor] = on
        self._manager.set_actor_state(actor, healthy=False)
        self._on_lost()
        return True

    def _settle_lost(self, sent: _Sent, outcome: Any) -> None:
        """End the call and all others of that life of the actor. Ray may tell a thread of the loss
        when the actor serves again already: those calls are to be in line before it does, in front
        of those that have had no try."""
        actor, life = sent.reserved.actor, sent.reserved.life
        for other in (sent, *self.calls[actor].values()):
            if other.reserved.life == life and not other.answer.done():
                other.answer.set_result((outcome, self._on.get(actor) == other.number))

    def serves(self, actor: int) -> None:
        """The actor is in service (again)."""
        self._manager.set_actor_state(actor, healthy=True)
        self.progress = time.monotonic()

    async def ping(self, actor: int, deadline: float) -> bool:
        def answers() -> bool:
            # By itself, and not with all others that are out of service: one that the
            # cluster has no room for keeps silent for ever.
            results = self._manager.foreach_actor(
                Invoke("ping"),
                kwargs={},
                healthy_only=False,
                remote_actor_ids=[actor],
                timeout_seconds=deadline,
            )
            return any(result.ok for result in results)

        return await asyncio.get_running_loop().run_in_executor(self._threads, answers)

    def add(self, handle: ActorHandle) -> int:
        """A further actor, which does not serve yet; returns its number."""
        self._manager.add_actors([handle])
        actor: int = self._manager.actor_ids()[-1]
        self._manager.set_actor_state(actor, healthy=False)
        self.handles[actor], self.calls[actor] = handle, {}
        return actor

    def remove(self, actor: int) -> None:
        self._manager.remove_actor(actor)
        del self.handles[actor], self.calls[actor]
        self._on.pop(actor, None)

    async def close(self) -> None:
        """End the actors for good; calls in flight fail."""
        self._closed = True
        for handle in self.handles.values():
            await asyncio.to_thread(ray.kill, handle, no_restart=True)
        self._threads.shutdown(wait=False)


class _Sent(NamedTuple):
    """A call that an actor was sent."""

    reserved: Reservation
    number: int
    deadline: float
    due: float
    reason: str
    answer: asyncio.Future[tuple[Any, bool]]
    """The outcome (`_wait_for_result`), and whether the call is to blame where the actor was
    lost."""


class Bystander(InfraFailure):
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
