"""Calls of an actor pool that miss their deadline, and those that stand behind them, on a real
Ray."""

import asyncio
import time

import pytest

from common.actors.pool import ActorPool
from common.failures import (
    CallLost,
    CallOverdue,
    DeadlineExceeded,
    InfraFailure,
)
from tests.pooled_calls import run, until_healthy

pytestmark = pytest.mark.usefixtures("ray_local")


def test_missed_deadline_names_its_reason_and_frees_the_place_of_the_hanging_actor() -> None:
    async def body(pool: ActorPool) -> None:
        await pool.call("pid", deadline=30, retries=0, reason="starting")
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"waited 1\.0 s for hanging"):
            await pool.call("sleep", 600, deadline=1, retries=0, reason="hanging")
        assert time.monotonic() - began < 5
        assert await pool.call("add", 1, 1, deadline=30, retries=0, reason="adding") == 2
        assert pool.stats()["missed_deadlines"] == 1

    run(body, actors=1)


def test_a_call_that_stands_behind_one_that_hangs_is_not_failed_with_it() -> None:
    async def body(pool: ActorPool) -> None:
        await pool.call("pid", deadline=30, retries=0, reason="starting")
        hanging = asyncio.create_task(
            pool.call("sleep", 600, deadline=2, retries=0, reason="hanging")
        )
        await asyncio.sleep(0.1)
        assert await pool.call("add", 1, 1, deadline=30, retries=0, reason="adding") == 2
        with pytest.raises(CallOverdue):
            await hanging
        assert pool.stats()["retries"] == 1

    run(body, actors=1)


def test_a_call_that_stands_behind_one_that_ends_its_actor_is_not_failed_with_it() -> None:
    async def body(pool: ActorPool) -> None:
        await pool.call("pid", deadline=30, retries=0, reason="starting")
        deadly = asyncio.create_task(pool.call("die", 0.5, deadline=30, retries=2, reason="dying"))
        await asyncio.sleep(0.1)
        assert await pool.call("add", 1, 1, deadline=30, retries=0, reason="adding") == 2
        with pytest.raises(CallLost, match=r"dying on actor 0 of pool test: \w+"):
            await deadly
        # Its own three tries, and whatever was behind it: once for certain.
        assert pool.stats()["infra_failures"] >= 4

    run(body, actors=1)


def test_a_call_that_hangs_takes_its_actor_with_it_though_nobody_waits_for_it_any_more() -> None:
    async def body(pool: ActorPool) -> None:
        pid = await pool.call("pid", deadline=30, retries=0, reason="starting")
        hanging = asyncio.create_task(
            pool.call("sleep", 600, deadline=1, retries=0, reason="hanging")
        )
        await asyncio.sleep(0.1)
        hanging.cancel()
        # Longer than the test may take, and no try to lose: the one that hangs is overdue first,
        # and to blame.
        assert await pool.call("pid", deadline=120, retries=0, reason="asking") != pid
        assert pool.stats()["missed_deadlines"] == 1

    run(body, actors=1)


def test_a_call_that_is_in_time_is_not_to_blame_for_one_behind_it_that_is_not() -> None:
    async def body(pool: ActorPool) -> None:
        await pool.call("pid", deadline=30, retries=0, reason="starting")
        in_time = asyncio.create_task(
            pool.call("sleep", 2, deadline=30, retries=0, reason="sleeping")
        )
        await asyncio.sleep(0.1)
        with pytest.raises(CallOverdue, match=r"waited 1\.0 s for asking"):
            await pool.call_actor(0, "pid", deadline=1, reason="asking")
        await in_time

    run(body, actors=1)


def test_a_call_overdue_behind_one_that_hangs_is_not_charged_with_a_try() -> None:
    async def body(pool: ActorPool) -> None:
        await pool.call("pid", deadline=30, retries=0, reason="starting")
        before = asyncio.create_task(
            pool.call("sleep", 0.6, deadline=2, retries=0, reason="sleeping")
        )
        await asyncio.sleep(0.2)  # sent at once, the two might arrive the other way round
        hanging = asyncio.create_task(
            pool.call("sleep", 600, deadline=2, retries=0, reason="hanging")
        )
        await before
        # Both had a call ahead of them and are due after twice the deadline, this one 0.4 s later:
        # before Ray says what became of it.
        assert await pool.call("add", 1, 1, deadline=2, retries=0, reason="adding") == 2
        with pytest.raises(CallOverdue):
            await hanging

    run(body, actors=1)


def test_waiting_for_the_only_actor_outlasts_a_call_that_is_overdue_on_it() -> None:
    async def body(pool: ActorPool) -> None:
        await pool.call("pid", deadline=30, retries=0, reason="starting")
        hanging = [
            asyncio.create_task(pool.call("sleep", 600, deadline=4, retries=0, reason="hanging"))
            for _ in range(2)
        ]
        await asyncio.sleep(0.1)
        # Neither is ever done, and after each of them the actor starts again.
        waiting = [pool.call("add", 1, 1, deadline=4, retries=0, reason="adding") for _ in range(2)]
        assert await asyncio.gather(*waiting) == [2, 2]
        assert [
            type(outcome) for outcome in await asyncio.gather(*hanging, return_exceptions=True)
        ] == [CallOverdue] * 2

    run(body, actors=1)


def test_a_caller_that_divides_gets_overdue_and_lost_calls_back_after_the_first_try() -> None:
    async def body(pool: ActorPool) -> None:
        await pool.call("pid", deadline=30, retries=0, reason="starting")
        with pytest.raises(CallOverdue):
            await pool.call("sleep", 600, deadline=1, retries=5, reason="hanging", retry_lost=False)
        with pytest.raises(CallLost) as lost:
            await pool.call("die", deadline=30, retries=5, reason="dying", retry_lost=False)
        assert pool.stats()["retries"] == 0
        await until_healthy(pool)
        # Its parts go elsewhere.
        other = await pool.call_actor(1 - lost.value.actor, "pid", deadline=30, reason="asking")
        pids = [
            await pool.call(
                "pid", deadline=30, retries=0, reason="asking", tried=[lost.value.actor]
            )
            for _ in range(4)
        ]
        assert pids == [other] * 4
        # What is the machine's fault is tried again all the same.
        with pytest.raises(InfraFailure, match="disk"):
            await pool.call(
                "refuse", "infra", deadline=30, retries=2, reason="refusing", retry_lost=False
            )
        assert pool.stats()["retries"] == 2

    run(body)
