"""Rewards by a user's own function: a file and a name in the configuration, called turn by turn, each turn under a deadline.

What goes wrong in the function is the failure of the turn that it was called for: its own traceback, without our frames, and which
turn it was. A call that does not come back is left behind in its thread, which is told to end as soon as it comes back.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.config.rewards import FunctionReward
from common.episode import Turn
from common.failures import InputError, nearest

Outcome = float | str | None
"""The value; why there is none; or None, where the reward does not apply to the turn."""
ModelOutcome = Outcome | tuple[float, float]
"""Of a reward model that gives a distribution: the value and its standard deviation."""


@lru_cache(maxsize=64)
def load_function(path: str) -> Callable[..., Any]:
    """The function that "FILE.py:NAME" or "package.module:NAME" means. Raises InputError naming what is not there."""
    where, _, name = path.rpartition(":")
    if not where or not name:
        raise InputError(path, "should read FILE.py:NAME or package.module:NAME")
    if where.endswith(".py"):
        module = _from_file(where)
    else:
        try:
            module = importlib.import_module(where)
        except ImportError as error:
            raise InputError(path, f"cannot be imported: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(path, f"there is no function {name!r} in {where}; {nearest(name, known)}")
    return function


def source_file(path: str) -> str | None:
    """The file that the path names, or that its module is read from; None where that is no file. Whatever is callable may stand in it."""
    where = path.rpartition(":")[0]
    if where.endswith(".py"):
        return str(Path(where).expanduser())
    load_function(path)  # a module is in sys.modules once it was imported
    return getattr(sys.modules[where], "__file__", None)


def _from_file(where: str) -> Any:
    file = Path(where).expanduser()
    if not file.is_file():
        raise InputError(where, "there is no such file")
    spec = importlib.util.spec_from_file_location(f"engram_reward_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(where, f"cannot be imported: {type(error).__name__}: {error}") from error
    return module


def function_rewards(section: FunctionReward, turns: Sequence[Turn]) -> list[Outcome]:
    """The outcome of each turn, in order. No turn takes longer than `section.deadline` seconds, whatever the function does."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(turns):
        run = _Run(load_function(section.path), section.arguments, turns[len(outcomes) :])
        outcomes += run.outcomes_within(section.deadline)
    return outcomes


class _Run:
    """A function called for turns one after another in a thread, until it is over or one of the calls takes too long."""

    def __init__(self, function: Callable[..., Any], arguments: dict[str, Any], turns: Sequence[Turn]):
        self._function, self._arguments, self._turns = function, arguments, turns
        self._done: list[Outcome] = []
        self._present = (0, time.monotonic())
        """The turn that the function is called for, and since when. One tuple, so that the two always belong together."""
        self._over, self._given_up = threading.Event(), threading.Event()
        # A daemon: a call that never comes back must not keep the process from ending.
        threading.Thread(target=self._work, name="engram-reward-function", daemon=True).start()

    def outcomes_within(self, deadline: float) -> list[Outcome]:
        """Outcomes of the first turns: of all, or up to and with the one that took longer than `deadline`."""
        while True:
            turn, began = self._present
            if self._over.wait(max(0.0, began + deadline - time.monotonic())):
                return self._done
            if self._present[0] == turn:
                self._given_up.set()
                return [*self._done[:turn], f"no value within {deadline:g} s for {described(self._turns[turn])}"]

    def _work(self) -> None:
        for i, turn in enumerate(self._turns):
            self._present = (i, time.monotonic())
            outcome = self._call(turn)
            if self._given_up.is_set():
                return
            self._done.append(outcome)
        self._over.set()

    def _call(self, turn: Turn) -> Outcome:
        try:
            value = self._function(turn, **self._arguments)
            if value is None:
                return None
            number = float(value)
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises is the failure of this turn
            frames = error.__traceback__.tb_next if error.__traceback__ else None
            text = "".join(traceback.format_exception(type(error), error, frames)).strip()
            return f"{text}\nraised for {described(turn)}"
        return number if math.isfinite(number) else f"the value is {number} for {described(turn)}"


def described(turn: Turn) -> str:
    return f"the turn with query {turn.query[:200]!r} and answer {turn.answer[:200]!r}"
