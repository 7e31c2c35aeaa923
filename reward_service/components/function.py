"""Rewards by a user's own function: a file and a name in the configuration, called turn by turn,
each turn under a deadline.

What goes wrong in the function is the failure of the turn that it was called for: its own
traceback, without our frames, and which turn it was. It runs in a process of its own
(`function_process.py`), which is kept for the next call, and started again where it did not survive
one. The user's file is never imported here.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from pathlib import Path

from common.config.components import FunctionReward
from common.episode import Turn
from common.failures import InputError
from reward_service.comparison import Compared
from reward_service.components.component import Outcome, RewardComponent, Source
from reward_service.components.function_process import FunctionProcess

LOAD_AGAIN_SECONDS = 20.0
"""Seconds until a function that could not be loaded is tried again: a batch whose turns all fail is
divided, and asks for each part."""
KEPT = 64
"""Processes that are kept at most. A run has as many as functions; one that scores for many runs
must not collect them."""


def function_rewards(section: FunctionReward, turns: Sequence[Turn]) -> list[Outcome]:
    """The outcome of each turn, in order. No turn takes longer than `section.deadline` seconds,
    whatever the function does.

    Raises InputError where the function cannot be loaded.
    """
    return _kept(section).outcomes(section, turns)


def open_function(section: FunctionReward) -> None:
    """Load the function, so that no call has to. Raises InputError."""
    _kept(section).outcomes(section, ())


def close_functions() -> None:
    """End every process that is kept. The next calls start new ones."""
    with _lock:
        ended = list(_functions.values())
        _functions.clear()
    for function in ended:
        function.close()


def try_function(section: FunctionReward, sample: Turn | None) -> None:
    """Load the function and call it for `sample`. Raises InputError where it fails, or takes longer
    than its deadline."""
    process = FunctionProcess(section.path, section.arguments, section.load_deadline)
    try:
        outcome = process.outcomes([sample], section.deadline)[0] if sample is not None else None
    finally:
        process.close()
    if isinstance(outcome, str):
        advice = (
            "; raise its `deadline`, or have it do what takes long when its file is loaded"
            if process.late
            else ""
        )
        raise InputError(section.path, f"fails on a sample turn: {outcome}{advice}")


def source_file(path: str) -> str | None:
    """The file that the path names, or that its module is read from; None where that is no file.
    Nothing is imported to find it."""
    where = path.rpartition(":")[0]
    if where.endswith(".py"):
        return str(Path(where).expanduser())
    spec: ModuleSpec | None = None
    places: Sequence[str] | None = None
    name = ""
    for part in where.split("."):
        name = f"{name}.{part}" if name else part
        # Not `importlib.util.find_spec`, which imports the packages that the module is in.
        finders = (
            (PathFinder,) if places is not None else (BuiltinImporter, FrozenImporter, PathFinder)
        )
        spec = next(
            (found for finder in finders if (found := finder.find_spec(name, places)) is not None),
            None,
        )
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or ())
    return spec.origin if spec is not None and spec.has_location else None


class _Function:
    """A function's process, as long as it lives. Whoever calls the same function meanwhile
    waits."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._process: FunctionProcess | None = None
        self._refused: tuple[float, InputError] | None = None
        """When it could not be loaded, and why."""

    def outcomes(self, section: FunctionReward, turns: Sequence[Turn]) -> list[Outcome]:
        with self._one_at_a_time:
            outcomes = self._running(section).outcomes(turns, section.deadline)
            while len(outcomes) < len(turns):
                outcomes += self._running(section).outcomes(
                    turns[len(outcomes) :], section.deadline
                )
            return outcomes

    def _running(self, section: FunctionReward) -> FunctionProcess:
        if self._process is not None and not self._process.alive:
            self._process.close()
            self._process = None
        if self._process is None:
            self._process = self._load(section)
        return self._process

    def _load(self, section: FunctionReward) -> FunctionProcess:
        if self._refused is not None and time.monotonic() < self._refused[0] + LOAD_AGAIN_SECONDS:
            raise InputError(self._refused[1].where, self._refused[1].what)
        try:
            return FunctionProcess(section.path, section.arguments, section.load_deadline)
        except InputError as refusal:
            self._refused = time.monotonic(), refusal
            raise

    def close(self) -> None:
        with self._one_at_a_time:
            if self._process is not None:
                self._process.close()
                self._process = None


_functions: OrderedDict[tuple[str, str], _Function] = OrderedDict()
"""By path and arguments; what was called last comes last."""
_lock = threading.Lock()


def _kept(section: FunctionReward) -> _Function:
    key = section.path, section.model_dump_json(include={"arguments"})
    surplus = []
    with _lock:
        function = _functions.setdefault(key, _Function())
        _functions.move_to_end(key)
        while len(_functions) > KEPT:
            surplus.append(_functions.popitem(last=False)[1])
    for old in surplus:
        old.close()
    return function


# --- the component --------------------------------------------------------------------------------


def _score(section: FunctionReward, compared: Compared) -> list[Outcome]:
    return function_rewards(section, compared.in_context)


def _digest(path: str) -> str | None:
    file = source_file(path)
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=8).hexdigest() if file else None


def _check(section: FunctionReward, _key: str, sample: Turn | None) -> None:
    try_function(section, sample)


def _open(section: FunctionReward) -> None:
    # Where that fails, every turn it is called for fails at once and says why. A worker that does
    # not come up says so much later.
    with contextlib.suppress(InputError):
        open_function(section)


FUNCTION = RewardComponent(
    FunctionReward,
    _score,
    range=None,
    by_turn=True,
    source=Source("path", _digest, _check, _open, tries=True),
)
