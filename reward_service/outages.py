"""Waiting for a service that is away: who waits, who asks again and when, and what a reader of the
run is told meanwhile. No Ray.

One call asks again, after pauses that grow; the others wait for what it finds, since a hundred that
ask at once are no help to an endpoint that starts. A call is given up where it has waited for as
long as patience allows, or where the run is told to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from common.failures import Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds; each is twice the one before, less up to a half, so that several askers do not keep
step."""
FIRST_WORD = 10.0
"""Seconds from the first word about an outage to the second; each further one comes when it has
lasted twice as long."""


@dataclass(eq=False)
class Outage:
    since: float
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the call that asks."""
    over: bool = False
    tries: int = 0
    next_word: float = 0.0
    """Seconds of the outage at which there is something to say again."""


class Outages:
    """tell: takes a line for whoever watches the run. clock: seconds, as the event loop counts
    them. Inside one event loop."""

    def __init__(
        self, tell: Callable[[str], None] | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self._tell, self._clock = tell, clock
        self._outages: dict[str, Outage] = {}
        self._whys: dict[str, str] = {}
        self._stopping = asyncio.Event()

    async def through(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of `attempt`, which is tried again while it raises Unavailable. Raises
        Unavailable where it was given up, or is `of_batch`. While another call waits for the same
        service, the batch is not to blame, so the attempt waits as well."""
        waited: defaultdict[str, float] = defaultdict(float)
        while True:
            try:
                result = await attempt()
            except Unavailable as failure:
                if failure.of_batch and not self._is_waited_for(failure.what):
                    raise
                away = failure
            else:
                self._forget_what_nobody_waits_for()
                return result
            began = self._clock()
            outage = self._outages.setdefault(away.what, Outage(began))
            async with outage.asking:
                while not outage.over:
                    self._say(outage, away)
                    await self._pause(outage, away, waited[away.what] + self._clock() - began)
                    try:
                        result = await attempt()
                    except Unavailable as still:
                        if still.of_batch:
                            raise
                        if still.what != away.what:
                            break  # that one is waited for instead
                        away = still
                    else:
                        self._end(outage, away)
                        return result
            waited[away.what] += self._clock() - began

    def _is_waited_for(self, what: str) -> bool:
        outage = self._outages.get(what)
        return outage is not None and outage.asking.locked()

    def stop_waiting(self) -> None:
        """Give up every call that waits, and whatever would wait from now on: the run is to
        stop."""
        self._stopping.set()

    def describe(self) -> list[str]:
        """The services that are waited for, and for how long."""
        now = self._clock()
        return [
            f"{self._whys[what]} for {now - outage.since:.0f} s"
            for what, outage in self._outages.items()
        ]

    async def _pause(self, outage: Outage, away: Unavailable, waited: float) -> None:
        """Until it is time to ask again. Raises Unavailable where it is time to give up."""
        left = away.patience - max(waited, self._clock() - outage.since)
        if left <= 0 or self._stopping.is_set():
            raise Unavailable(
                away.what, away.why, away.patience, waited=max(waited, self._clock() - outage.since)
            ) from away
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(outage.tries, 10)) * random.uniform(
            0.5, 1.0
        )
        outage.tries += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), min(max(pause, away.pause), left))

    def _say(self, outage: Outage, away: Unavailable) -> None:
        self._whys[away.what] = str(away)
        lasted = self._clock() - outage.since
        if lasted < outage.next_word:
            return
        outage.next_word = max(FIRST_WORD, 2 * lasted)
        self._word(f"{away}; waiting up to {away.patience:.0f} s, for {lasted:.0f} s now")

    def _end(self, outage: Outage, away: Unavailable) -> None:
        outage.over = True
        self._outages.pop(away.what, None)
        self._word(f"{away.what} answers again, after {self._clock() - outage.since:.0f} s")

    def _forget_what_nobody_waits_for(self) -> None:
        """Drop outages that were given up, whose end nobody finds: a call has succeeded, so the
        next outage begins anew."""
        self._outages = {
            what: outage for what, outage in self._outages.items() if outage.asking.locked()
        }

    def _word(self, line: str) -> None:
        log.warning(line)
        if self._tell is not None:
            self._tell(line)
