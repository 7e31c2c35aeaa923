"""Calls that wait for a free actor of a pool, first come, first served. No Ray, no clock of its
own.

Whoever is at the front is handed an actor with a place reserved on it, and only it is woken: with a
thousand calls in line, waking all of them each time a place is free would cost more than the calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.actors.health import Members


class Reservation(NamedTuple):
    """Reserved on an actor, to be given back with `fleet.ended(actor, life, places)`."""

    actor: int
    life: int
    places: int
    ahead: int
    """Calls that the actor had already."""


@dataclass(eq=False, slots=True)
class Waiter:
    since: float
    tried: Sequence[int]
    """Actors on which the call failed before: taken again only where no other has room."""
    place: asyncio.Future[Reservation | None]
    """None: the pool was closed."""


class CallQueue:
    def __init__(self, fleet: Members):
        self._fleet = fleet
        self._waiters: deque[Waiter] = deque()

    def __len__(self) -> int:
        return len(self._waiters)

    def oldest(self) -> float | None:
        """Since when the one has waited that has waited longest; None where none waits."""
        return min((waiter.since for waiter in self._waiters), default=None)

    def join(self, since: float, tried: Sequence[int]) -> Waiter:
        """Take a place in line. One that was tried before goes to the front: it has had its
        wait."""
        waiter = Waiter(since, tried, asyncio.get_running_loop().create_future())
        if tried:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        self.serve()
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Out of the line without a place: waited too long, or cancelled. A place handed over
        meanwhile is given back."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        elif waiter.place.done() and (place := waiter.place.result()) is not None:
            self._fleet.ended(place.actor, place.life, place.places)
            self.serve()

    def serve(self) -> None:
        """Hand out what is free. To be called whenever an actor has room again.

        One that was tried before takes as many places as there are, so that nothing is behind it:
        it may be what ends actors.
        """
        while self._waiters and (actor := self._fleet.pick(self._waiters[0].tried)) is not None:
            waiter, ahead = self._waiters.popleft(), self._fleet.members[actor].load
            places = self._fleet.cap if waiter.tried else 1
            waiter.place.set_result(
                Reservation(actor, self._fleet.began(actor, places), places, ahead)
            )

    def close(self) -> None:
        while self._waiters:
            self._waiters.popleft().place.set_result(None)
