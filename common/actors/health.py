"""Health of the actors of one pool, as a pure state machine: no Ray, no clock, no waiting.

    HEALTHY ──died──► DEAD ──probing──► RESTARTING ──answered──► STALE ──refreshed──► HEALTHY
       ├────────────────────outdated────────────────────────────► STALE
       └──withdraw──► LEAVING ──remove──► gone      add──► STARTING ──answered──► STALE

An actor that died lost its state, so an answer to a probe is not enough: it passes through STALE,
where it answers but is not eligible, until it has taken and verified the current state (invariant
6). One that was added comes the same way: until it answers it may be waiting for room on the
cluster, which is neither a death nor a reason to send it work.

Two races are closed here. A call of an earlier life that fails late must not bury the new one:
every call carries the `life` it began in. A refresh that began before the latest announcement
brings yesterday's state: it carries the announcement it saw, and leaves the actor STALE when a
newer one was made.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum


@dataclass(slots=True)
class PoolCounts:
    """Counts of a pool since it was made."""

    calls: int = 0
    data_failures: int = 0
    infra_failures: int = 0
    missed_deadlines: int = 0
    retries: int = 0
    restored: int = 0
    failed_restores: int = 0
    added: int = 0
    ended: int = 0


class Health(StrEnum):
    STARTING = "starting"
    HEALTHY = "healthy"
    DEAD = "dead"
    RESTARTING = "restarting"
    STALE = "stale"
    LEAVING = "leaving"


@dataclass(slots=True)
class Member:
    health: Health = Health.HEALTHY
    life: int = 0
    """How often it has died."""
    load: int = 0
    """Units of its capacity that calls in flight of this life take."""
    why: str = ""
    """Why it went out of service last."""
    served: bool = True
    """False for one that was added and has not come into service yet."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """A refresh under way: the life of the actor it began in, and the announcement whose state it
    brings."""

    actor: int
    life: int
    announcement: int


class Members:
    """The members of a pool.

    capacity: units of each actor; a call takes one, or all of them where nothing may stand behind
    it. new: whether actors have to be brought up to date before they serve.
    """

    def __init__(self, actors: Iterable[int], capacity: int = 2, new: bool = False):
        self.members = {
            actor: Member(Health.STARTING, served=False) if new else Member() for actor in actors
        }
        self.capacity = capacity
        self.announcement = 0
        self._draw = random.Random(0)

    def pick(self, avoid: Collection[int] = ()) -> int | None:
        """The least loaded eligible actor, one outside `avoid` where there is any; None while none
        has room.

        Of several that are alike it is the first, so that under little work the others are idle and
        may be ended. For a call that failed before, one is drawn: actors may go in an order of
        their own, as nodes are taken back, and a call that follows it goes with each.
        """
        free = {
            actor: (actor in avoid, m.load)
            for actor, m in self.members.items()
            if m.health is Health.HEALTHY and m.load < self.capacity
        }
        if not free:
            return None
        best = min(free.values())
        alike = [actor for actor, rank in free.items() if rank == best]
        return self._draw.choice(alike) if avoid else min(alike)

    def began(self, actor: int, units: int = 1) -> int:
        """A call was sent that takes so many units; returns the life it belongs to."""
        self.members[actor].load += units
        return self.members[actor].life

    def add(self, actor: int) -> None:
        """Add a new actor, which has not answered yet."""
        self.members[actor] = Member(Health.STARTING, served=False)

    def withdraw(self, actor: int) -> bool:
        """Send the actor nothing any more. False: it has calls in flight, nothing changes."""
        member = self.members[actor]
        if member.load:
            return False
        member.health = Health.LEAVING
        return True

    def remove(self, actor: int) -> None:
        del self.members[actor]

    def ended(self, actor: int, life: int, units: int = 1) -> None:
        if self.members[actor].life == life:
            self.members[actor].load -= units

    def died(self, actor: int, life: int, why: str) -> bool:
        """A call of `life` found the actor dead. False: that life is over already, nothing
        changes."""
        member = self.members[actor]
        if member.life != life:
            return False
        health = Health.LEAVING if member.health is Health.LEAVING else Health.DEAD
        self.members[actor] = Member(health, life + 1, 0, why, member.served)
        return True

    def probing(self, actor: int) -> None:
        """The actor is being asked whether it is there."""
        if self.members[actor].health is Health.DEAD:
            self.members[actor].health = Health.RESTARTING

    def probed(self, actor: int, answered: bool) -> None:
        """Take in the result of a probe: an actor that answered is stale, one that kept silent is
        still dead, or still starting."""
        member = self.members[actor]
        if answered and member.health in (Health.RESTARTING, Health.STARTING):
            member.health = Health.STALE
        elif member.health is Health.RESTARTING:
            member.health = Health.DEAD

    def announce(self) -> None:
        """New state (a weights version) is being sent to the healthy; whoever is not among them
        needs it too."""
        self.announcement += 1

    def outdated(self, actor: int, why: str) -> None:
        """A healthy actor did not take the announced state."""
        member = self.members[actor]
        if member.health is Health.HEALTHY:
            member.health, member.why = Health.STALE, why

    def begin_refresh(self, actor: int) -> Refresh:
        return Refresh(actor, self.members[actor].life, self.announcement)

    def refreshed(self, refresh: Refresh) -> bool:
        """Make the actor eligible, unless it died meanwhile or what it was given is no longer the
        latest."""
        member = self.members[refresh.actor]
        current = (
            member.health is Health.STALE
            and member.life == refresh.life
            and refresh.announcement == self.announcement
        )
        if current:
            member.health, member.served = Health.HEALTHY, True
        return current

    def having(self, health: Health) -> list[int]:
        return [actor for actor, member in self.members.items() if member.health is health]

    def sick(self) -> list[int]:
        """Actors that should serve and do not yet."""
        return [
            actor
            for actor, member in self.members.items()
            if member.health not in (Health.HEALTHY, Health.LEAVING)
        ]

    def describe(self) -> str:
        """For the reason of a wait that failed: how many are in which state, and why."""
        parts = [f"{len(self.having(health))} {health}" for health in Health if self.having(health)]
        whys = sorted(
            {
                f"actor {a}: {m.why}"
                for a, m in self.members.items()
                if m.health is not Health.HEALTHY and m.why
            }
        )
        return ", ".join(parts) + (f" ({'; '.join(whys)})" if whys else "")
