"""The inner side of `function_process.py`: loads a user's reward function and calls it for one turn
after another.

Runs in a process of its own that imports neither torch nor Ray, so that it starts quickly. Whatever
the function raises, down to SystemExit, is the outcome of the turn that it was called for; what
ends the process is seen by the other side.

Messages in: 8 bytes of length and a pickle, first (path, arguments), then lists of turns. Messages
out: a kind, a length, and what it tells. An outcome goes out as soon as it is there, so that the
other side knows which turn the function is called for.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import inspect
import json
import math
import os
import pickle
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from common.episode import Turn
from common.failures import InputError, nearest, no_such_file
from common.text.printable import print_anything

REQUEST = struct.Struct("<Q")
ANSWER = struct.Struct("<cI")
NUMBER = struct.Struct("<d")
READY, REFUSED, VALUE, NO_VALUE, FAILURE = b"R", b"E", b"V", b"N", b"F"
LONGEST_TEXT = 20_000
"""Characters of a failure that are kept: the last ones, which say what was raised."""


def main(requests: int, answers: int, life: int) -> None:
    """The life of the process. Its arguments are file descriptors."""
    die_with(life)
    for stream in (sys.stdout, sys.stderr):
        print_anything(stream)  # what the function prints must not fail its turn
    for descriptor in (requests, answers, life):
        os.set_inheritable(descriptor, False)
    with os.fdopen(requests, "rb") as messages:
        path, arguments = _read(messages)
        sys.argv[:] = [
            path.rpartition(":")[0]
        ]  # a file that reads its command line must not find ours
        try:
            function = load_function(path)
        except InputError as refusal:
            _write(answers, REFUSED, json.dumps([refusal.where, refusal.what]).encode())
            return
        _write(answers, READY)
        serve(Caller(function, arguments), messages, answers)


def die_with(life: int) -> None:
    """Have the kernel end this process and all that it starts when the other end of the pipe `life`
    is gone.

    By a signal, because a function may hold the interpreter when the process that it works for
    dies.
    """
    fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    try:
        gone = os.read(life, 1) == b""
    except BlockingIOError:
        return
    if gone:  # before there was anybody to be told
        os._exit(1)


def serve(caller: Caller, messages: Any, answers: int) -> None:
    """Call the function for every turn that comes in, until nobody is left to ask."""
    own = os.getpid()
    while (turns := _read(messages)) is not None:
        for turn in turns:
            kind, content = caller.outcome(turn)
            if os.getpid() != own:
                os._exit(0)  # a fork that the function made and did not end: one answer is enough
            _write(answers, kind, content)


def _read(messages: Any) -> Any:
    head = messages.read(REQUEST.size)
    return pickle.loads(messages.read(*REQUEST.unpack(head))) if len(head) == REQUEST.size else None


def _write(answers: int, kind: bytes, content: bytes = b"") -> None:
    message = memoryview(ANSWER.pack(kind, len(content)) + content)
    while message:
        message = message[os.write(answers, message) :]


# --- loading --------------------------------------------------------------------------------------


def load_function(path: str) -> Callable[..., Any]:
    """The function that "FILE.py:NAME" or "package.module:NAME" means. Raises InputError naming
    what is not there."""
    where, _, name = path.rpartition(":")
    if not where or not name:
        raise InputError(path, "should read FILE.py:NAME or package.module:NAME")
    try:
        module = _from_file(where) if where.endswith(".py") else importlib.import_module(where)
        function = getattr(module, name, None)
    except InputError:
        raise
    except BaseException as error:
        what = "".join(traceback.format_exception_only(error)).strip()
        raise InputError(
            where, f"cannot be imported: {what}{_advice(error)}\n{_told(error)}"
        ) from error
    if not callable(function):
        known = [
            key
            for key, value in vars(module).items()
            if callable(value) and not key.startswith("_")
        ]
        raise InputError(path, f"there is no function {name!r} in {where}; {nearest(name, known)}")
    return function


def _from_file(where: str) -> ModuleType:
    file = Path(where).expanduser()
    if not file.is_file():
        raise no_such_file(where)
    spec = importlib.util.spec_from_file_location(f"engram_reward_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickles look for it
    spec.loader.exec_module(module)
    return module


def _advice(error: BaseException) -> str:
    if not isinstance(error, SystemExit):
        return ""
    return (
        ", which would end the run; what it does when run by itself belongs under `if "
        '__name__ == "__main__":`'
    )


# --- calling --------------------------------------------------------------------------------------


class Caller:
    """Calls the function, and waits for its result where that has to be awaited: always in the same
    event loop."""

    def __init__(self, function: Callable[..., Any], arguments: dict[str, Any]):
        self._function, self._arguments = function, arguments
        self._runner: Any = None

    def outcome(self, turn: Turn) -> tuple[bytes, bytes]:
        """Kind and content of the answer."""
        try:
            value = self._function(turn, **self._arguments)
            if inspect.isawaitable(value):
                value = self._wait_for(value)
            if value is None:
                return NO_VALUE, b""
            number = float(value)
        except BaseException as error:  # noqa: BLE001 - whatever a user's function raises is the failure of this turn
            return FAILURE, _as_text(f"{_told(error)}\nraised for {described(turn)}")
        if math.isfinite(number):
            return VALUE, NUMBER.pack(number)
        return FAILURE, _as_text(f"the value is {number} for {described(turn)}")

    def _wait_for(self, value: Any) -> Any:
        # Here and not at the top: a function that does not need it starts the quicker.
        import asyncio

        async def awaited() -> Any:
            return await value

        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(awaited())


def described(turn: Turn) -> str:
    return f"the turn with query {turn.query[:200]!r} and answer {turn.answer[:200]!r}"


def _told(error: BaseException) -> str:
    """The error with its traceback, without the frames that lead to the user's code."""
    frames = error.__traceback__
    while frames is not None and _is_on_the_way(frames):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames)).strip()


def _is_on_the_way(frames: TracebackType) -> bool:
    file = frames.tb_frame.f_code.co_filename
    library = f"{os.path.dirname(inspect.__file__)}{os.sep}"
    return file == __file__ or file.startswith(
        (f"{library}asyncio", f"{library}importlib", "<frozen importlib")
    )


def _as_text(failure: str) -> bytes:
    return failure[-LONGEST_TEXT:].encode("utf-8", "backslashreplace")
