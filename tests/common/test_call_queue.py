"""Who gets the next free actor. Without Ray."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from common.actors.health import Members
from common.actors.queue import CallQueue


def run(
    body: Callable[[Members, CallQueue], Coroutine[Any, Any, Any]],
    actors: int = 1,
    capacity: int = 1,
) -> Any:
    async def main() -> Any:
        fleet = Members(range(actors), capacity)
        return await body(fleet, CallQueue(fleet))

    return asyncio.run(main())


def test_first_come_first_served_and_one_that_was_tried_before_goes_ahead() -> None:
    async def body(fleet: Members, queue: CallQueue) -> None:
        busy = queue.join(0.0, [])
        waiting = {
            "first": queue.join(1.0, []),
            "second": queue.join(2.0, []),
            "again": queue.join(3.0, [0]),
        }
        assert (len(queue), queue.oldest()) == (3, 1.0)
        order = []
        reserved = busy.reserved.result()
        for _ in range(3):
            assert reserved is not None
            fleet.ended(reserved.actor, reserved.life)
            queue.serve()
            served = [name for name, waiter in waiting.items() if waiter.reserved.done()]
            order += served
            reserved = waiting.pop(served[0]).reserved.result()
        assert order == ["again", "first", "second"]
        assert queue.oldest() is None

    run(body)


def test_a_reservation_says_how_many_calls_are_ahead_of_it() -> None:
    async def body(fleet: Members, queue: CallQueue) -> None:
        reservations = [queue.join(0.0, []).reserved.result() for _ in range(4)]
        assert [(reserved.actor, reserved.ahead) for reserved in reservations if reserved] == [
            (0, 0),
            (1, 0),
            (0, 1),
            (1, 1),
        ]

    run(body, actors=2, capacity=2)


def test_one_that_was_tried_before_stands_last_on_its_actor_until_it_is_over() -> None:
    async def body(fleet: Members, queue: CallQueue) -> None:
        first, again, behind = queue.join(0.0, []), queue.join(1.0, [0]), queue.join(2.0, [])
        assert [waiter.reserved.done() for waiter in (first, again, behind)] == [True, True, False]
        reserved = again.reserved.result()
        assert reserved is not None
        assert (reserved.ahead, reserved.units) == (1, 3)
        # There is room where the first one was, but it would be behind.
        fleet.ended(0, 0)
        queue.serve()
        assert not behind.reserved.done()
        fleet.ended(reserved.actor, reserved.life, reserved.units)
        queue.serve()
        assert behind.reserved.done()
        assert fleet.members[0].load == 1

    run(body, capacity=3)


def test_who_leaves_gives_back_what_was_handed_over_meanwhile() -> None:
    async def body(fleet: Members, queue: CallQueue) -> None:
        cancelled, following, impatient = (
            queue.join(0.0, []),
            queue.join(1.0, []),
            queue.join(2.0, []),
        )
        assert cancelled.reserved.done()
        queue.leave(impatient)
        assert not following.reserved.done()
        queue.leave(cancelled)
        assert following.reserved.done()
        assert len(queue) == 0
        assert fleet.members[0].load == 1

    run(body)


def test_closing_sends_everyone_away() -> None:
    async def body(fleet: Members, queue: CallQueue) -> None:
        queue.join(0.0, [])
        waiter = queue.join(0.0, [])
        queue.close()
        assert waiter.reserved.result() is None

    run(body)
