"""Seconds by phase. The names of phases are those of the timer, the metric and the watchdog's
report."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseTimer:
    """`with timer("decode"): …` adds to `seconds["decode"]`; `current` is the phase one is in, for
    a watchdog in another thread.

    Host time: on a GPU, work that was only queued is paid for in the phase that waits for it.
    """

    def __init__(self) -> None:
        self.clock = time.perf_counter
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.current = "idle"

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        outer, self.current = self.current, phase
        began = self.clock()
        try:
            yield
        finally:
            self.seconds[phase] += self.clock() - began
            self.current = outer
