"""Pools of small actors for tests on a real Ray."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from common.actors.health import Health
from common.actors.pool import ActorPool
from tests.pool_worker import Worker


def run(
    body: Callable[[ActorPool], Coroutine[Any, Any, Any]],
    actors: int = 2,
    on_restored: Callable[..., Awaitable[None]] | None = None,
) -> Any:
    """body(pool) on a fresh pool. on_restored(pool, actor) where given."""

    async def main() -> Any:
        async def restored(actor: int) -> None:
            if on_restored is not None:
                await on_restored(pool, actor)

        pool = ActorPool(
            "test",
            [Worker.remote() for _ in range(actors)],
            restored,
            most=actors + 1,
            probe_every=0.1,
        )
        try:
            return await body(pool)
        finally:
            await pool.close()

    return asyncio.run(asyncio.wait_for(main(), 60))


async def until_healthy(pool: ActorPool) -> None:
    async with asyncio.timeout(30):
        while pool.fleet.having(Health.HEALTHY) != list(pool.fleet.members):
            await asyncio.sleep(0.05)
