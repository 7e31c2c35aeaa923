"""Brings actors of a pool into service that are dead, new or out of date; `common/actors/health.py`
says which of these each of them is.

Each has a task of its own: one that waits for room on the cluster, or takes long to load, holds no
other up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from common.actors.health import Health, Members, PoolCounts
from common.failures import EngramError

log = logging.getLogger(__name__)


class Recovery:
    """ping(actor): whether it answers; returns after a deadline of its own. on_restored: as for
    `ActorPool`. serves(actor): it now does."""

    def __init__(
        self,
        name: str,
        members: Members,
        counts: PoolCounts,
        ping: Callable[[int], Awaitable[bool]],
        on_restored: Callable[[int], Awaitable[None]] | None,
        serves: Callable[[int], None],
        probe_every: float,
    ):
        self._name, self._members, self._counts = name, members, counts
        self._ping, self._on_restored, self._serves = ping, on_restored, serves
        self._probe_every = probe_every
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._closed = False

    def tend(self) -> None:
        """Look after every actor that should serve and does not. Returns at once; costs nothing
        where all are well."""
        for actor in self._members.sick():
            if actor not in self._tasks and not self._closed:
                self._tasks[actor] = asyncio.create_task(
                    self._look_after(actor), name=f"pool-{self._name}-recovery-{actor}"
                )

    async def finished_with(self, actor: int) -> None:
        """Wait until nothing is asked of an actor that is leaving; soon, once it was killed."""
        if (task := self._tasks.get(actor)) is not None:
            await asyncio.wait([task])

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_after(self, actor: int) -> None:
        member = self._members.members
        try:
            while actor in self._members.sick():
                if member[actor].health is not Health.STALE:
                    self._members.probing(actor)
                    self._members.probed(actor, await self._ping(actor))
                if member[actor].health is Health.STALE:
                    await self._refresh(actor)
                if actor in self._members.sick():
                    await asyncio.sleep(self._probe_every)
        finally:
            del self._tasks[actor]

    async def _refresh(self, actor: int) -> None:
        refresh, new = self._members.begin_refresh(actor), not self._members.members[actor].served
        try:
            if self._on_restored is not None:
                await self._on_restored(actor)
        except EngramError as failure:
            self._counts.failed_restores += 1
            self._members.members[actor].why = f"restoring it failed: {failure}"
            log.warning("pool %s: actor %d stays out of service: %s", self._name, actor, failure)
        # The end of a background task: a bug in `on_restored` must be seen, and must not let the
        # actor serve.
        except Exception as error:
            self._counts.failed_restores += 1
            self._members.members[actor].why = f"restoring it failed: {error!r}"
            log.exception("pool %s: actor %d stays out of service", self._name, actor)
        else:
            if self._members.refreshed(refresh):
                self._counts.restored += not new
                self._serves(actor)
