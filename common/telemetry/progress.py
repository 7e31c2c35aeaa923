"""How a run tells its reader where it is: one narrow interface, so that loops need no terminal and
tests need no output.

The terminal's side is `deploy/progress.py`. Nothing here may fail a run: figures are for reading,
`metrics.jsonl` is the record.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """One run's progress. Stages follow one another; a new one ends the one before."""

    def stage(self, name: str, total: int, unit: str = "steps") -> None:
        """A stage of `total` steps begins (`total` includes steps done before a resume). unit: the
        plural of what is counted."""

    def update(self, step: int, **figures: float) -> None:
        """`step` steps of the current stage are done; `figures` are the latest values, such as
        loss, reward or recall."""

    def note(self, text: str) -> None:
        """One line that stays: a checkpoint, a restart, the result of an evaluation."""

    def doing(self, what: str) -> AbstractContextManager[None]:
        """Before the first stage: say what the block does, such as "reading data/chats.jsonl", and
        how long it has taken."""

    def close(self) -> None:
        """The run ended, well or not. Calling it twice is fine."""


class QuietProgress:
    """Progress that nobody watches."""

    def stage(self, name: str, total: int, unit: str = "steps") -> None:
        pass

    def update(self, step: int, **figures: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def doing(self, what: str) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        pass
