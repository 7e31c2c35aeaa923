"""Who waits for what is away, who asks again, and what a reader is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from common.failures import DataFailure, Unavailable
from reward_service import outages
from reward_service.outages import Outages


class Judge:
    """Away until `back` (monotonic), and then for good."""

    def __init__(self, seconds: float, name: str = "judge", patience: float = 30.0):
        self.back, self.name, self.patience = time.monotonic() + seconds, name, patience
        self.asked: list[float] = []

    async def __call__(self) -> str:
        self.asked.append(time.monotonic())
        await asyncio.sleep(0.001)
        if time.monotonic() < self.back:
            raise Unavailable(self.name, "gone", self.patience)
        return "scored"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(outages, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(outages, "FIRST_WORD", 0.3)


def run(body: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(body, 30))


def test_all_calls_wait_for_what_one_of_them_finds_and_then_go_on() -> None:
    judge, told = Judge(1.0), list[str]()

    async def body() -> list[str]:
        waiting = Outages(told.append)
        return await asyncio.gather(*(waiting.through(judge) for _ in range(50)))

    assert run(body()) == ["scored"] * 50
    away = [moment for moment in judge.asked if moment < judge.back]
    # 50 at first, then one at a time, after pauses of 0.025 s at least and 0.2 s once they have grown.
    assert 50 + 4 <= len(away) <= 50 + 20
    assert told[0] == "judge does not answer (gone); waiting up to 30 s, for 0 s now"
    assert told[-1] == "judge answers again, after 1 s"
    assert 3 <= len(told) <= 4, "a word when it begins, after 0.3 and 0.6 s, and at its end"


def test_patience_has_an_end_and_the_next_call_does_not_begin_anew() -> None:
    judge = Judge(3600, patience=0.5)

    async def body() -> None:
        waiting = Outages()
        for longest in (2.0, 0.1):
            began = time.monotonic()
            calls = [asyncio.create_task(waiting.through(judge)) for _ in range(3)]
            for call in calls:
                with pytest.raises(Unavailable, match=r"judge does not answer \(gone\), and was waited for \d s"):
                    await call
            assert time.monotonic() - began < longest
        assert waiting.describe() == ["judge does not answer (gone) for 1 s"]
        judge.back = 0.0
        assert await waiting.through(judge) == "scored"
        assert waiting.describe() == []
        judge.back = time.monotonic() + 0.2  # given up once, but back since: it may be waited for again
        assert await waiting.through(judge) == "scored"

    run(body())


def test_a_call_that_meets_one_short_outage_after_another_has_but_one_patience() -> None:
    asked = 0

    async def flapping() -> str:
        nonlocal asked
        asked += 1
        raise Unavailable(f"judge {asked % 2}", "gone", 0.5)

    async def body() -> None:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await Outages().through(flapping)
        assert 0.4 < time.monotonic() - began < 3

    run(body())


def test_time_in_an_outage_that_another_call_saw_the_end_of_counts() -> None:
    short, long = Judge(0.7, patience=30), Judge(3600, patience=1.0)

    async def body() -> None:
        waiting = Outages()
        began = time.monotonic()
        first = asyncio.create_task(waiting.through(short))
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):
            await waiting.through(long)
        assert time.monotonic() - began < 1.4, "0.7 s behind the first and 1.0 s anew are too many"
        assert await first == "scored"

    run(body())


def test_a_stop_ends_all_waiting_at_once() -> None:
    judge = Judge(3600)

    async def body() -> None:
        waiting = Outages()
        calls = [asyncio.create_task(waiting.through(judge)) for _ in range(3)]
        await asyncio.sleep(0.3)
        waiting.stop_waiting()
        began = time.monotonic()
        for call in [*calls, asyncio.create_task(waiting.through(judge))]:
            with pytest.raises(Unavailable):
                await call
        assert time.monotonic() - began < 1

    run(body())


def test_what_else_goes_wrong_is_raised_and_another_call_asks_on() -> None:
    asked = 0

    async def attempt() -> str:
        nonlocal asked
        asked += 1
        if asked <= 2:
            raise Unavailable("judge", "gone", 30)
        if asked == 3:
            raise DataFailure("this turn")
        return "scored"

    async def body() -> list[Any]:
        waiting = Outages()
        return await asyncio.gather(*(waiting.through(attempt) for _ in range(2)), return_exceptions=True)

    first, second = run(body())
    assert isinstance(first, DataFailure)
    assert second == "scored"


def test_a_pause_that_was_asked_for_is_made() -> None:
    asked: list[float] = []

    async def attempt() -> str:
        asked.append(time.monotonic())
        if len(asked) == 1:
            raise Unavailable("judge", "gone", 30, pause=0.7)
        return "scored"

    assert run(Outages().through(attempt)) == "scored"
    assert asked[1] - asked[0] >= 0.7
