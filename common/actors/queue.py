"""Calls that wait for a free actor of a pool, first come, first served. No Ray, no clock of its
own.

The call at the front is handed a reservation on an actor, and only its caller is woken: with a
thousand calls in line, waking all of them each time an actor is free would cost more than the
calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.actors.health import Members


class Reservation(NamedTuple):
    """Units of an actor's capacity, to be given back with `members.ended(actor, life, units)`."""

    actor: int
    life: int
    units: int
    ahead: int
    """Calls that the actor had already."""


@dataclass(eq=False, slots=True)
class Waiter:
    since: float
    tried: Sequence[int]
    """Actors on which the call failed before: taken again only where no other has room."""
    reserved: asyncio.Future[Reservation | None]
    """None: the pool was closed."""


class CallQueue:
    def __init__(self, members: Members):
        self._members = members
        self._waiters: deque[Waiter] = deque()

    def __len__(self) -> int:
        return len(self._waiters)

    def oldest(self) -> float | None:
        """When the call that has waited longest began to wait; None where none waits."""
        return min((waiter.since for waiter in self._waiters), default=None)

    def join(self, since: float, tried: Sequence[int]) -> Waiter:
        """Begin to wait. A call that was tried before goes to the front: it has had its wait."""
        waiter = Waiter(since, tried, asyncio.get_running_loop().create_future())
        if tried:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        self.serve()
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Stop waiting, after too long or cancelled. What was reserved meanwhile is given back."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        elif waiter.reserved.done() and (reserved := waiter.reserved.result()) is not None:
            self._members.ended(reserved.actor, reserved.life, reserved.units)
            self.serve()

    def serve(self) -> None:
        """Hand out what is free. To be called whenever an actor has room again.

        A call that was tried before takes the whole capacity, so that nothing is behind it: it may
        be what ends actors.
        """
        while self._waiters and (actor := self._members.pick(self._waiters[0].tried)) is not None:
            waiter, ahead = self._waiters.popleft(), self._members.members[actor].load
            units = self._members.capacity if waiter.tried else 1
            waiter.reserved.set_result(
                Reservation(actor, self._members.began(actor, units), units, ahead)
            )

    def close(self) -> None:
        while self._waiters:
            self._waiters.popleft().reserved.set_result(None)
