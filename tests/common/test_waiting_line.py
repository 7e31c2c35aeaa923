"""Who gets the next free actor. Without Ray."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from common.actors.health import Members
from common.actors.queue import CallQueue


def run(
    body: Callable[[Members, CallQueue], Coroutine[Any, Any, Any]], actors: int = 1, cap: int = 1
) -> Any:
    async def main() -> Any:
        fleet = Members(range(actors), cap)
        return await body(fleet, CallQueue(fleet))

    return asyncio.run(main())


def test_first_come_first_served_and_one_that_was_tried_before_goes_ahead() -> None:
    async def body(fleet: Members, line: CallQueue) -> None:
        busy = line.join(0.0, [])
        waiting = {
            "first": line.join(1.0, []),
            "second": line.join(2.0, []),
            "again": line.join(3.0, [0]),
        }
        assert (len(line), line.oldest()) == (3, 1.0)
        order = []
        place = busy.place.result()
        for _ in range(3):
            assert place is not None
            fleet.ended(place.actor, place.life)
            line.serve()
            served = [name for name, waiter in waiting.items() if waiter.place.done()]
            order += served
            place = waiting.pop(served[0]).place.result()
        assert order == ["again", "first", "second"]
        assert line.oldest() is None

    run(body)


def test_a_place_says_how_many_calls_are_ahead_of_it() -> None:
    async def body(fleet: Members, line: CallQueue) -> None:
        places = [line.join(0.0, []).place.result() for _ in range(4)]
        assert [(place.actor, place.ahead) for place in places if place] == [
            (0, 0),
            (1, 0),
            (0, 1),
            (1, 1),
        ]

    run(body, actors=2, cap=2)


def test_one_that_was_tried_before_stands_last_on_its_actor_until_it_is_over() -> None:
    async def body(fleet: Members, line: CallQueue) -> None:
        first, again, behind = line.join(0.0, []), line.join(1.0, [0]), line.join(2.0, [])
        assert [waiter.place.done() for waiter in (first, again, behind)] == [True, True, False]
        place = again.place.result()
        assert place is not None
        assert (place.ahead, place.places) == (1, 3)
        # There is a place where the first one was, but it would be behind.
        fleet.ended(0, 0)
        line.serve()
        assert not behind.place.done()
        fleet.ended(place.actor, place.life, place.places)
        line.serve()
        assert behind.place.done()
        assert fleet.members[0].load == 1

    run(body, cap=3)


def test_who_leaves_gives_back_the_place_that_was_handed_over_meanwhile() -> None:
    async def body(fleet: Members, line: CallQueue) -> None:
        cancelled, next_in_line, impatient = (
            line.join(0.0, []),
            line.join(1.0, []),
            line.join(2.0, []),
        )
        assert cancelled.place.done()
        line.leave(impatient)
        assert not next_in_line.place.done()
        line.leave(cancelled)
        assert next_in_line.place.done()
        assert len(line) == 0
        assert fleet.members[0].load == 1

    run(body)


def test_closing_sends_everyone_away() -> None:
    async def body(fleet: Members, line: CallQueue) -> None:
        line.join(0.0, [])
        waiter = line.join(0.0, [])
        line.close()
        assert waiter.place.result() is None

    run(body)
