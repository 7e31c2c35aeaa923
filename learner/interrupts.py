"""Interrupts taken as a count, so that none is lost.

Python raises KeyboardInterrupt wherever the main thread happens to be, and that may be inside code
that drops it, such as `__del__`. A run was once seen to go on after one; where it was dropped was
not found. A handler that counts leaves nothing to drop.
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
    raises: bool = False
    """Whether the first one raises KeyboardInterrupt too."""

    def check(self) -> None:
        """Raise KeyboardInterrupt where there was one."""
        if self.count:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside the block the first interrupt raises KeyboardInterrupt too, in Ray's waits within
        a second.

        One that came before raises on entry, one that was dropped inside on leaving.
        """
        before, self.raises = self.raises, True
        try:
            self.check()
            yield
            self.check()
        finally:
            self.raises = before


_taken: Interrupts | None = None
"""Interrupts of the innermost open `counted` block. Signal handlers belong to the process, so their
count does too."""


@contextmanager
def counted() -> Iterator[Interrupts]:
    """The first SIGINT or SIGTERM inside the block is counted, every further one raises
    KeyboardInterrupt as well.

    Blocks nest and share their count. Outside the main thread, where Python lets nobody handle
    signals, nothing is counted.
    """
    global _taken
    if threading.current_thread() is not threading.main_thread():
        yield Interrupts()
        return
    outer = _taken
    seen = _taken = outer or Interrupts()
    raised, seen.raises = seen.raises, False

    def count(_signal: int, _frame: FrameType | None) -> None:
        seen.count += 1
        if seen.raises or seen.count > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, count) for number in SIGNALS}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        seen.raises, _taken = raised, outer
