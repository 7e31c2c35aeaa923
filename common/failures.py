"""Typed failures of the whole system.

Two questions decide what happens after a failure: whose fault is it, and can it pass when tried
again? Infra failures (a dead actor, a missed deadline) are tried again on another actor; data
failures are a property of the input and are never retried, only counted. Unknown causes count as
data: they must surface, not loop.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_DRAINED = 0, 1, 2, 75
EXIT_INTERRUPTED = 130
"""Exit code of a command that stopped nothing but itself, such as following a job."""


class EngramError(Exception):
    """Base of every failure raised on purpose; `exit_code` is what the command line ends with."""

    exit_code = EXIT_FAILED


class InputError(EngramError):
    """Bad input or configuration. `where` names the file, row or key; `what` says what is wrong in
    one sentence."""

    exit_code = EXIT_BAD_INPUT

    def __init__(self, where: str, what: str):
        super().__init__(where, what)
        self.where, self.what = where, what

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class InfraFailure(EngramError):
    """The machine failed, not the input: an actor died, a connection broke. Try elsewhere."""


class DeadlineExceeded(InfraFailure):
    """A wait passed its deadline. Every wait in engram has one, with the name of what was
    awaited."""

    def __init__(self, reason: str, seconds: float):
        super().__init__(reason, seconds)
        self.reason, self.seconds = reason, seconds

    def __str__(self) -> str:
        return f"waited {self.seconds:.1f} s for {self.reason}"


class Unavailable(InfraFailure):
    """Something that the run needs and does not run itself does not answer. No actor is at fault,
    so another one would find the same: who has the time waits for it."""

    def __init__(
        self,
        what: str,
        why: str,
        patience: float,
        pause: float = 0.0,
        waited: float = 0.0,
        of_batch: bool = False,
    ):
        super().__init__(what, why, patience, pause, waited, of_batch)
        self.what, self.why = what, why
        self.patience, self.pause, self.waited = patience, pause, waited
        """Seconds: that it may be waited for in all; that it asked to be left alone; that it has
        been waited for."""
        self.of_batch = of_batch
        """Whether it answers, and may fail of what it was asked: a caller that can divide it,
        should."""

    def __str__(self) -> str:
        waited = f", and was waited for {self.waited:.0f} s" if self.waited else ""
        return f"{self.what} {'fails' if self.of_batch else 'does not answer'} ({self.why}){waited}"


class CallLost(InfraFailure):
    """The actor died with the call on it, or cannot be reached. The call may be what ended it: a
    caller that can divide it, should."""

    def __init__(self, what: str, actor: int):
        super().__init__(what, actor)
        self.what, self.actor = what, actor

    def __str__(self) -> str:
        return self.what


class CallOverdue(DeadlineExceeded):
    """An actor was sent the call and did not answer in time. The call may ask for too much: a
    caller that can divide it, should."""

    def __init__(self, reason: str, seconds: float, actor: int):
        super().__init__(reason, seconds)
        self.args, self.actor = (reason, seconds, actor), actor


class DataFailure(EngramError):
    """This input fails wherever it is tried. Report and count it; never retry it."""


class LeaseLost(EngramError):
    """Another driver has taken over the run. This one, and every actor that writes for it, must end
    without writing again; nothing is wrong with the run."""


class Drained(EngramError):
    """The run was asked to stop and has left a checkpoint from which it resumes."""

    exit_code = EXIT_DRAINED


def no_such_file(path: str | Path) -> InputError:
    """For a local file that is not there: with the nearest name beside it, if one is near."""
    missing = Path(path)
    siblings = [each.name for each in missing.parent.glob("*")]
    close = difflib.get_close_matches(missing.name, siblings, n=1)
    near = f"; did you mean {str(missing.parent / close[0])!r}?" if close else ""
    return InputError(str(path), f"there is no such file{near}")


def nearest(word: str, valid: Iterable[Any]) -> str:
    """A ready `"; did you mean …?"` for error messages, or the valid names where none is near."""
    names = sorted(str(name) for name in valid)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(names)}"
