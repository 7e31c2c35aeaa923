"""Who waits for what is away, who asks again, and what a reader is told. In seconds that pass at
once, however busy the machine is."""

from __future__ import annotations

import asyncio
import re
import selectors
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest

from common.failures import DataFailure, Unavailable
from reward_service.outages import FIRST_WORD, Outages


class Selector(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nothing will ever happen any more"
        self.now += timeout
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """Where there is nothing to do but wait, the clock is put on."""

    def __init__(self) -> None:
        self._own = Selector()
        super().__init__(self._own)

    def time(self) -> float:
        return self._own.now


def now() -> float:
    return asyncio.get_running_loop().time()


def waiting_in_this_loop(tell: Callable[[str], None] | None = None) -> Outages:
    return Outages(tell, asyncio.get_running_loop().time)


class Judge:
    """Away until `back`, and then for good. Loops begin at 0."""

    def __init__(self, back: float, name: str = "judge", patience: float = 300.0):
        self.back, self.name, self.patience = back, name, patience
        self.asked: list[float] = []

    async def __call__(self) -> str:
        self.asked.append(now())
        await asyncio.sleep(0.001)
        if now() < self.back:
            raise Unavailable(self.name, "gone", self.patience)
        return "scored"


def run(body: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(body)


def test_all_calls_wait_for_what_one_of_them_finds_and_then_go_on() -> None:
    judge, told = Judge(60), list[str]()

    async def body() -> list[str]:
        waiting = waiting_in_this_loop(told.append)
        return await asyncio.gather(*(waiting.through(judge) for _ in range(50)))

    assert run(body()) == ["scored"] * 50
    away = [moment for moment in judge.asked if moment < judge.back]
    # 50 at first, then one at a time, after pauses of 0.5, 1, 2, 4, 8 and then 10 s, or of half as
    # much.
    assert 50 + 9 <= len(away) <= 50 + 15
    assert told[0] == "judge does not answer (gone); waiting up to 300 s, for 0 s now"
    end = re.fullmatch(r"judge answers again, after (\d+) s", told[-1])
    assert end is not None
    assert 60 <= int(end[1]) <= 70
    words = [float(line.split()[-3]) for line in told[1:-1]]
    assert words[0] >= FIRST_WORD
    assert all(later >= 2 * earlier - 1 for earlier, later in pairwise(words)), (
        "as seldom as it has lasted long"
    )
    assert 2 <= len(words) <= 3


def test_patience_has_an_end_and_the_next_call_does_not_begin_anew() -> None:
    judge = Judge(3600)

    async def body() -> None:
        waiting = waiting_in_this_loop()
        for longest in (301.0, 1.0):
            began = now()
            calls = [asyncio.create_task(waiting.through(judge)) for _ in range(3)]
            for call in calls:
                with pytest.raises(
                    Unavailable, match=r"judge does not answer \(gone\), and was waited for 300 s"
                ):
                    await call
            assert now() - began < longest
        assert waiting.describe() == ["judge does not answer (gone) for 300 s"]
        judge.back = 0.0
        assert await waiting.through(judge) == "scored"
        assert waiting.describe() == []
        judge.back = now() + 20  # given up once, but back since: it may be waited for again
        assert await waiting.through(judge) == "scored"

    run(body())


def test_a_call_that_meets_one_short_outage_after_another_has_but_one_patience() -> None:
    asked = 0

    async def flapping() -> str:
        nonlocal asked
        asked += 1
        raise Unavailable(f"judge {asked % 2}", "gone", 30)

    async def body() -> None:
        with pytest.raises(Unavailable):
            await waiting_in_this_loop().through(flapping)
        assert 25 < now() < 100

    run(body())


def test_time_in_an_outage_that_another_call_saw_the_end_of_counts() -> None:
    short, long = Judge(14), Judge(3600, patience=20)

    async def body() -> None:
        waiting = waiting_in_this_loop()
        first = asyncio.create_task(waiting.through(short))
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):
            await waiting.through(long)
        assert now() < 26, "14 s behind the first and 20 s anew are too many"
        assert await first == "scored"

    run(body())


def test_a_stop_ends_all_waiting_at_once() -> None:
    judge = Judge(3600)

    async def body() -> None:
        waiting = waiting_in_this_loop()
        calls = [asyncio.create_task(waiting.through(judge)) for _ in range(3)]
        await asyncio.sleep(30)
        waiting.stop_waiting()
        began = now()
        for call in [*calls, asyncio.create_task(waiting.through(judge))]:
            with pytest.raises(Unavailable):
                await call
        assert now() - began < 0.1

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
        waiting = waiting_in_this_loop()
        return await asyncio.gather(
            *(waiting.through(attempt) for _ in range(2)), return_exceptions=True
        )

    first, second = run(body())
    assert isinstance(first, DataFailure)
    assert second == "scored"


def test_a_pause_that_was_asked_for_is_made() -> None:
    asked: list[float] = []

    async def attempt() -> str:
        asked.append(now())
        if len(asked) == 1:
            raise Unavailable("judge", "gone", 30, pause=7)
        return "scored"

    async def body() -> str:
        return await waiting_in_this_loop().through(attempt)

    assert run(body()) == "scored"
    assert asked[1] - asked[0] == pytest.approx(7)


def test_what_may_be_due_to_the_batch_is_not_waited_for_unless_another_call_finds_an_outage() -> (
    None
):
    judge = Judge(60)
    asked: list[float] = []

    async def refused() -> str:
        asked.append(now())
        raise Unavailable("judge", "it answered 500", 300, of_batch=True)

    async def body() -> None:
        waiting = waiting_in_this_loop()
        with pytest.raises(Unavailable, match=r"^judge fails \(it answered 500\)$"):
            await waiting.through(refused)
        assert now() == 0
        other = asyncio.create_task(waiting.through(judge))
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match=r"^judge fails "):
            await waiting.through(refused)
        assert now() >= 60
        assert await other == "scored"
        assert waiting.describe() == []

    run(body())
    assert len(asked) == 3, "alone, and before and after the outage"


def test_one_that_fails_of_the_batch_once_it_is_back_is_not_waited_for_any_longer() -> None:
    asked = 0

    async def attempt() -> str:
        nonlocal asked
        asked += 1
        raise Unavailable("judge", "gone", 300, of_batch=asked == 3)

    async def body() -> None:
        with pytest.raises(Unavailable, match=r"^judge fails "):
            await waiting_in_this_loop().through(attempt)
        assert now() < 10

    run(body())
