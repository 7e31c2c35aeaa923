"""On a real local Ray: actors here are killed with SIGKILL by the pid they told us."""

import asyncio
import os
import signal
import time
from typing import Any

import pytest
import ray
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from common.actors.health import Health
from common.actors.pool import ActorPool
from common.failures import (
    CallLost,
    DataFailure,
    DeadlineExceeded,
    InfraFailure,
)
from tests.pool_worker import Worker
from tests.pooled_calls import run, until_healthy

pytestmark = pytest.mark.usefixtures("ray_local")


def test_calls_spread_over_actors_and_references_arrive_resolved() -> None:
    async def body(pool: ActorPool) -> None:
        one = ray.put(1)
        assert await pool.call("add", one, 2, deadline=30, retries=0, reason="adding") == 3
        pids = await asyncio.gather(
            *(pool.call("sleep", 0.5, deadline=30, retries=0, reason="sleeping") for _ in range(6))
        )
        # Three each where both are as quick; on a busy machine one may take a call more.
        assert sorted(pids.count(pid) for pid in set(pids)) in ([3, 3], [2, 4])
        assert pool.stats()["in_flight"] == 0

    run(body)


def test_event_loop_keeps_running_while_actors_work() -> None:
    async def body(pool: ActorPool) -> None:
        await pool.call("pid", deadline=30, retries=0, reason="starting")
        work = asyncio.create_task(
            pool.call("sleep", 0.5, deadline=30, retries=0, reason="sleeping")
        )
        ticks = 0
        while not work.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks > 20

    run(body, actors=1)


@pytest.mark.parametrize("how", ["data", "input", "bug"])
def test_exception_of_the_application_is_a_data_failure_and_leaves_the_actor_in_service(
    how: str,
) -> None:
    async def body(pool: ActorPool) -> None:
        with pytest.raises(DataFailure) as caught:
            await pool.call("refuse", how, deadline=30, retries=3, reason="refusing")
        assert "in refuse" in "".join(caught.value.__notes__)
        assert (pool.stats()["healthy"], pool.stats()["retries"], pool.stats()["calls"]) == (
            1,
            0,
            1,
        )

    run(body, actors=1)


def test_infra_failure_that_the_application_raised_is_tried_elsewhere() -> None:
    async def body(pool: ActorPool) -> None:
        with pytest.raises(InfraFailure, match="disk"):
            await pool.call("refuse", "infra", deadline=30, retries=1, reason="refusing")
        assert (pool.stats()["healthy"], pool.stats()["retries"]) == (2, 1)

    run(body)


def test_calls_of_a_killed_actor_are_done_by_another() -> None:
    async def body(pool: ActorPool) -> None:
        pid = await pool.call_actor(0, "pid", deadline=30, reason="asking")
        calls = [
            asyncio.create_task(pool.call("sleep", 0.5, deadline=30, retries=2, reason="sleeping"))
            for _ in range(4)
        ]
        await asyncio.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        survivors = await asyncio.gather(*calls)
        assert pid not in survivors
        assert pool.stats()["infra_failures"] == 2

    run(body)


def test_killed_actor_serves_again_only_after_it_was_brought_up_to_date() -> None:
    events: list[str] = []

    async def restore(pool: ActorPool, actor: int) -> None:
        events.append("restoring")
        assert pool.fleet.members[actor].health is Health.STALE
        await asyncio.sleep(0.3)
        await pool.call_actor(actor, "set_version", 8, deadline=30, reason="restoring")
        events.append("restored")

    async def body(pool: ActorPool) -> None:
        await pool.broadcast("set_version", 7, deadline=30, reason="setting")
        os.kill(await pool.call_actor(0, "pid", deadline=30, reason="asking"), signal.SIGKILL)
        # The only actor is gone: the call waits for it, and for nothing less than its restoration.
        assert await pool.call("served_with", deadline=30, retries=3, reason="serving") == 8
        assert events == ["restoring", "restored"]

    run(body, actors=1, on_restored=restore)


def test_actor_that_cannot_be_restored_is_never_used_and_the_wait_for_it_ends() -> None:
    async def restore(pool: ActorPool, actor: int) -> None:
        raise InfraFailure("weights are gone")

    async def body(pool: ActorPool) -> None:
        with pytest.raises(InfraFailure):
            await pool.call("die", deadline=30, retries=0, reason="dying")
        with pytest.raises(DeadlineExceeded, match="for serving: 1 ") as caught:
            await pool.call("served_with", deadline=4, retries=3, reason="serving")
        assert "weights are gone" in str(caught.value)

    run(body, actors=1, on_restored=restore)


def test_state_announced_during_a_restoration_reaches_the_restored_actor_too() -> None:
    restoring, announced = asyncio.Event(), asyncio.Event()
    latest = 1

    async def restore(pool: ActorPool, actor: int) -> None:
        version = latest
        restoring.set()
        await announced.wait()
        await pool.call_actor(actor, "set_version", version, deadline=30, reason="restoring")

    async def body(pool: ActorPool) -> None:
        nonlocal latest
        os.kill(await pool.call_actor(0, "pid", deadline=30, reason="asking"), signal.SIGKILL)
        with pytest.raises(InfraFailure):
            await pool.call_actor(0, "sleep", 600, deadline=30, reason="noticing")
        await restoring.wait()
        latest = 2
        assert await pool.broadcast("set_version", 2, deadline=30, reason="announcing") == {1: 2}
        announced.set()
        await until_healthy(pool)
        assert await pool.call_actor(0, "served_with", deadline=30, reason="serving") == 2

    run(body, on_restored=restore)


def test_calls_lost_with_their_actor_go_first_though_ray_tells_of_them_one_by_one() -> None:
    done: list[str] = []

    async def call(pool: ActorPool, name: str, *method: Any, **options: Any) -> None:
        try:
            await pool.call(*method, deadline=30, reason=name, **options)
        finally:
            done.append(name)

    async def body(pool: ActorPool) -> None:
        await pool.call("pid", deadline=30, retries=0, reason="starting")
        told = pool._dispatch._wait_for_result

        def told_late(actor: int, method: str, args: tuple[Any, ...], deadline: float) -> Any:
            outcome = told(actor, method, args, deadline)
            if method == "die" and pool.counts.restored == 0:
                # The call behind it is told at once, and everything else is done meanwhile.
                time.sleep(6)
            return outcome

        pool._dispatch._wait_for_result = told_late  # type: ignore[method-assign]
        deadly = asyncio.create_task(call(pool, "deadly", "die", 0.5, retries=0))
        await asyncio.sleep(0.1)
        others = [
            asyncio.create_task(call(pool, name, "add", 1, 1, retries=0))
            for name in ("behind", "untried")
        ]
        with pytest.raises(CallLost):
            await deadly
        await asyncio.gather(*others)
        assert done == ["deadly", "behind", "untried"]

    run(body, actors=1)


def test_a_closed_pool_says_so() -> None:
    async def body(pool: ActorPool) -> None:
        sleeping = [
            asyncio.create_task(pool.call("sleep", 600, deadline=30, retries=3, reason=f"call {i}"))
            for i in range(3)
        ]
        await asyncio.sleep(0.1)
        assert (pool.stats()["in_flight"], pool.stats()["waiting"]) == (2, 1)
        await pool.close()
        asked = (
            pool.call("pid", deadline=30, retries=3, reason="call 3"),
            pool.call_actor(0, "pid", deadline=30, reason="call 4"),
        )
        for call in (*sleeping, *asked):
            with pytest.raises(InfraFailure, match=r"pool test is closed, call \d was not done"):
                await call

    run(body, actors=1)


def test_broadcast_reports_each_actor_that_failed() -> None:
    async def body(pool: ActorPool) -> None:
        outcomes = await pool.broadcast("refuse", "data", deadline=30, reason="refusing")
        assert sorted(outcomes) == [0, 1]
        assert all(isinstance(outcome, DataFailure) for outcome in outcomes.values())

    run(body)


def test_actor_that_was_added_takes_its_share_and_one_that_was_withdrawn_is_gone() -> None:
    async def body(pool: ActorPool) -> None:
        first = await pool.call("pid", deadline=30, retries=0, reason="asking")
        added = pool.add(Worker.remote())
        with pytest.raises(ValueError, match="at most 2"):
            pool.add(Worker.remote())
        await until_healthy(pool)
        assert (pool.stats()["added"], pool.stats()["restored"]) == (1, 0)
        busy = [
            asyncio.create_task(pool.call("sleep", 0.5, deadline=30, retries=0, reason="sleeping"))
            for _ in range(4)
        ]
        await asyncio.sleep(0.2)
        assert not pool.withdraw(added)
        assert pool.idle_since() == {}
        assert len({*await asyncio.gather(*busy), first}) == 2
        assert sorted(pool.idle_since()) == [0, added]
        assert pool.withdraw(added)
        await pool.end(added)
        assert pool.stats()["actors"] == 1
        assert await pool.call("pid", deadline=30, retries=0, reason="asking") == first
        # The place may be taken again.
        pool.add(Worker.remote())
        await until_healthy(pool)

    run(body, actors=1)


def test_actor_that_finds_no_place_on_the_cluster_holds_nothing_up_and_is_not_counted_as_dead() -> (
    None
):
    async def body(pool: ActorPool) -> None:
        pid = await pool.call("pid", deadline=30, retries=0, reason="asking")
        pending = pool.add(Worker.options(num_gpus=1).remote())  # this Ray has none
        assert await pool.call("add", 1, 2, deadline=30, retries=0, reason="adding") == 3
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        assert await pool.call("add", 1, 2, deadline=30, retries=3, reason="adding") == 3
        # Were the two probed together, the one that was killed would wait out the probe of the
        # other.
        assert time.monotonic() - began < 20
        member = pool.fleet.members[pending]
        assert (member.health, member.life, pool.stats()["restored"]) == (Health.STARTING, 0, 1)
        assert await pool.broadcast("set_version", 1, deadline=30, reason="setting") == {0: 1}
        assert pool.withdraw(pending)
        await pool.end(pending)
        assert pool.fleet.describe() == "1 healthy"

    run(body, actors=1)


def test_calls_go_through_rllibs_actor_manager_which_notices_the_dead() -> None:
    """The manager sends the calls and keeps the health of each actor: one that died is out until it
    was restored."""
    restoring = asyncio.Event()

    async def restore(pool: ActorPool, actor: int) -> None:
        # Ray may have the actor back before the test has asked what it wants to know.
        await restoring.wait()

    async def body(pool: ActorPool) -> None:
        manager = pool._dispatch._manager
        assert isinstance(manager, FaultTolerantActorManager)
        assert manager.healthy_actor_ids() == [0, 1]
        with pytest.raises(InfraFailure):
            await pool.call("die", 0.1, deadline=30, retries=0, reason="dying", retry_lost=False)
        assert len(manager.healthy_actor_ids()) == 1
        (left,) = manager.healthy_actor_ids()
        pids = {await pool.call("pid", deadline=30, retries=0, reason="asking") for _ in range(3)}
        own = ray.get(pool.actors()[left].apply.remote(lambda _: os.getpid()), timeout=30)
        assert pids == {own}, "only the healthy one is asked"
        restoring.set()
        await until_healthy(pool)
        assert manager.healthy_actor_ids() == [0, 1]

    run(body, on_restored=restore)
