"""A user's own environment: a `gymnasium.Env` of texts, or a class with the methods of
`Environment`.

The user's code runs in a thread of its own. Where it raises, its episode fails with the traceback.
Where it does not return in time, the thread is left to itself and its episode fails; the next call,
of another episode, gets a new thread. (Code that holds the interpreter for ever stops the worker,
which misses its own deadline then and is killed.)
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import gymnasium

from common.config.environment import CustomEnvironment
from common.episode import Fact, Interaction, Task
from common.failures import DataFailure, InputError, nearest
from common.seeding import derive
from rollout.protocols import Environment, Observation, Outcome, Start

log = logging.getLogger(__name__)

T = TypeVar("T")


class CustomAdapter:
    """The environment of one episode."""

    def __init__(self, settings: CustomEnvironment):
        self._settings = settings
        self._own: Environment | None = None

    def reset(self, task: Task) -> Start:
        def begin() -> Start:
            own = load_class(self._settings.path)(**self._settings.arguments)
            self._own = GymnasiumEpisode(own) if isinstance(own, gymnasium.Env) else own
            return self._own.reset(task)

        return self._call("reset", begin)

    def step(self, answer: str) -> Outcome:
        own = self._own
        assert own is not None, "reset comes before step"
        return self._call("step", lambda: own.step(answer))

    def close(self) -> None:
        own, self._own = self._own, None
        if own is not None:
            try:
                self._call("close", own.close)
            except DataFailure as failure:
                log.warning("%s", failure)  # its episode is over, and loses nothing

    def _call(self, method: str, code: Callable[[], T]) -> T:
        who = f"environment {self._settings.path}, {method}"
        try:
            return _THREAD.call(code, self._settings.deadline)
        except _Late:
            self._own = None  # its thread may be in it yet
            raise DataFailure(
                f"{who}: did not return within {self._settings.deadline:g} s"
            ) from None
        except InputError:
            raise
        except Exception as error:
            raise DataFailure(f"{who}: {_told(error)}") from error


class GymnasiumEpisode:
    """`gymnasium.Env` as an `Environment`.

    `reset` is called with a seed of the task's. The `info` of `reset` and `step` may say more about
    the observation it comes with: "reference", "role" and "facts" (a list of (value, said_in)), and
    that of `reset` the "opening", (query, answer), which memory is written with first. That of
    `step` may hold "figures", numbers of the episode so far by name.
    """

    def __init__(self, own: gymnasium.Env[Any, Any]):
        self._own = own

    def reset(self, task: Task) -> Start:
        query, info = self._own.reset(seed=derive(task.seed, "environment") % 2**31)
        observation = _observation(query, info)
        if "opening" not in info:
            return Start(observation)
        told, answer = info["opening"]
        return Start(observation, Interaction(told, answer, role="remember"))

    def step(self, answer: str) -> Outcome:
        query, reward, terminated, truncated, info = self._own.step(answer)
        paid = float(reward)
        if not math.isfinite(paid):
            raise ValueError(f"rewards must be finite numbers, and this one is {paid}")
        return Outcome(
            None if terminated else _observation(query, info),
            paid,
            bool(truncated),
            {name: float(value) for name, value in info.get("figures", {}).items()},
        )

    def close(self) -> None:
        self._own.close()


def _observation(query: Any, info: Mapping[str, Any]) -> Observation:
    if not isinstance(query, str):
        raise TypeError(f"observations must be texts (str), and this one is {query!r}")
    facts = tuple(Fact(value, said_in) for value, said_in in info.get("facts", ()))
    return Observation(query, info.get("reference", ""), None, info.get("role", "act"), facts)


@lru_cache(maxsize=8)
def load_class(path: str) -> Callable[..., Any]:
    """The class that "FILE.py:CLASS" or "package.module:CLASS" means. Raises InputError naming what
    is not there."""
    where, _, name = path.rpartition(":")
    if not where or not name:
        raise InputError(path, "should read FILE.py:CLASS or package.module:CLASS")
    if where.endswith(".py") and not Path(where).is_file():
        raise InputError(path, f"there is no file {where}")
    try:
        module = _from_file(where) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:
        raise InputError(where, f"cannot be imported: {_told(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        known = [each for each in vars(module) if callable(getattr(module, each))]
        raise InputError(path, f"there is no class {name!r} in {where}; {nearest(name, known)}")
    return found


def _from_file(where: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"engram_environment_{Path(where).stem}", where)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickles look for it
    spec.loader.exec_module(module)
    return module


def _told(error: BaseException) -> str:
    """The error with its traceback, without the frames that lead to the user's code."""
    frames = error.__traceback__
    while frames is not None and _is_on_the_way(frames):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames)).strip()


def _is_on_the_way(frames: TracebackType) -> bool:
    file = frames.tb_frame.f_code.co_filename
    library = os.path.dirname(importlib.__file__)
    return file == __file__ or file.startswith((library, "<frozen importlib"))


class _Late(Exception):
    """A call took longer than its deadline."""


class _CallThread:
    """Calls functions in a thread, one after another. One that is late keeps its thread."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Any]] | None = None

    def call(self, code: Callable[[], T], deadline: float) -> T:
        """Run `code`; returns or raises what it does, or raises `_Late` after the deadline."""
        if self._calls is None:
            self._calls = queue.SimpleQueue()
            # A daemon: the process must be able to end while user code hangs.
            threading.Thread(target=_serve, args=(self._calls,), daemon=True).start()
        answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        self._calls.put((code, answers))
        try:
            value, error = answers.get(timeout=deadline)
        except queue.Empty:
            self._calls = None
            raise _Late from None
        if error is not None:
            raise error
        return value


def _serve(calls: queue.SimpleQueue[tuple[Callable[[], Any], Any]]) -> None:
    while True:
        code, answers = calls.get()
        try:
            answers.put((code(), None))
        except Exception as error:  # noqa: BLE001 - raised again in the thread that called
            answers.put((None, error))
        except BaseException as error:  # noqa: BLE001 - sys.exit() must not end the worker
            answers.put((None, RuntimeError(f"it raised {error!r}")))


_THREAD = _CallThread()
