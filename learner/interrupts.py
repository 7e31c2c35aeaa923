"""Interrupts taken as a count, so that none is lost.

Python raises KeyboardInterrupt wherever the main thread happens to be, and that may be inside code that drops it, such as `__del__`. A run
was once seen to go on after one; where it was dropped was not found. A handler that only counts leaves nothing to drop.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Interrupts:
    count: int = 0


@contextmanager
def counted() -> Iterator[Interrupts]:
    """The first SIGINT or SIGTERM inside the block is counted, every further one raises KeyboardInterrupt as well.

    Outside the main thread, where Python lets nobody handle signals, nothing is counted.
    """
    seen = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def count(_signal: int, _frame: FrameType | None) -> None:
        seen.count += 1
        if seen.count > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, count) for number in SIGNALS}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
