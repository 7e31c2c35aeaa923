"""A user's reward function in a child process, where it can neither take its caller down nor hold
it.

The child (`function_child.py`) is told turns over one pipe and tells outcomes over another. Where
one takes longer than its deadline, the child is killed, whatever it is doing: a thread could not be
ended, and one that holds the interpreter would hold the deadline too. A third pipe, on which
nothing is ever said, tells the kernel when to end the child: as soon as the caller is gone.

Invariants: the outcomes that came are those of the first turns, in order, so that the next turn is
the one that the function is called for; nothing that the child sends is unpickled; every wait has a
deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from common.episode import Turn
from common.failures import InputError
from reward_service.components.component import Outcome
from reward_service.components.function_child import (
    ANSWER,
    FAILURE,
    NO_VALUE,
    NUMBER,
    READY,
    REFUSED,
    REQUEST,
    VALUE,
    described,
)

TOGETHER = 256
"""Turns in one message: few enough that taking it apart is nothing beside any deadline."""
LOOK_EVERY = 0.1
"""Seconds between two looks whether the child is there: where it left another process behind, its
pipes stay open without it."""
GONE_SECONDS = 1.0
"""From when a process's pipes are closed until it is gone, if that is why they are."""
END_SECONDS = 5.0
"""A process that was killed is gone at once, unless the kernel itself is waiting for something."""
LONGEST_ANSWER = 2**20

_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from "
    "reward_service.components.function_child import main; main(*map(int, sys.argv[2:]))"
)


class FunctionProcess:
    """The function at `path`, called with `arguments`. One thread at a time may ask it.

    Raises InputError where the function cannot be loaded, or not within `load_deadline` seconds.
    """

    def __init__(self, path: str, arguments: dict[str, Any], load_deadline: float):
        self._answers = b""
        self._told: deque[tuple[bytes, bytes]] = deque()
        self.late = False
        """Whether a call, or loading, took too long."""
        self._closed = False
        self._start()
        try:
            self._load(path, arguments, load_deadline)
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        requests, self._requests = os.pipe()
        self._answered, answers = os.pipe()
        life, self._life = os.pipe()
        given = (requests, answers, life)
        # The same modules as here, whichever way they came to be found.
        places = json.dumps([os.path.abspath(place) for place in sys.path])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-c", _START, places, *map(str, given)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what the function prints is no part of the result of a command
                pass_fds=given,
                start_new_session=True,  # an interrupt at the terminal is for us
            )
        finally:
            for descriptor in given:
                os.close(descriptor)
        for descriptor in (self._requests, self._answered):
            os.set_blocking(descriptor, False)
        self._reading, self._writing = select.poll(), select.poll()
        self._reading.register(self._answered, select.POLLIN)
        self._writing.register(self._requests, select.POLLOUT)

    def _load(self, path: str, arguments: dict[str, Any], deadline: float) -> None:
        where, until = path.rpartition(":")[0] or path, time.monotonic() + deadline
        try:
            self._send((path, arguments), until)
            kind, content = self._next(until)
            if kind == REFUSED:
                raise InputError(*json.loads(content))
            if kind != READY:
                raise _Ended
        except _Late:
            self.late = True
            what = (
                f"was not imported within {deadline:g} s; raise the function's "
                "`load_deadline` where it needs longer"
            )
            raise InputError(where, what) from None
        except _Ended:
            raise InputError(
                where, f"ended the process that imported it, {self._how_it_ended()}"
            ) from None

    @property
    def alive(self) -> bool:
        return not self._closed and self._process.poll() is None

    def outcomes(self, turns: Sequence[Turn], deadline: float) -> list[Outcome]:
        """Outcomes of the first turns: of all, or up to and with the one that the process did not
        survive.

        deadline: seconds for each of them.
        """
        done: list[Outcome] = []
        try:
            for start in range(0, len(turns), TOGETHER):
                part = turns[start : start + TOGETHER]
                self._send(list(part), time.monotonic() + deadline)
                for _ in part:
                    done.append(_outcome(*self._next(time.monotonic() + deadline)))
        except _Late:
            self.late = True
            self.close()
            done.append(f"no value within {deadline:g} s for {described(turns[len(done)])}")
        except _Ended:
            how = self._how_it_ended()
            done.append(
                f"the function's process ended, {how}, in its call for "
                f"{described(turns[len(done)])}"
            )
        return done

    def close(self) -> None:
        """End the process, and what it started. Calling it twice is fine."""
        if self._closed:
            return
        self._closed = True
        # Its own group, which may outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for descriptor in (self._requests, self._answered, self._life):
            os.close(descriptor)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)

    def _how_it_ended(self) -> str:
        """The exit of a process whose pipes are closed, as they are a moment before it is gone."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GONE_SECONDS)
        code = self._process.returncode
        self.close()
        if code is None:
            return "as it had closed its pipes, or written into them"
        if code >= 0:
            return f"with exit code {code}"
        try:
            return f"by signal {-code} ({signal.Signals(-code).name})"
        except ValueError:
            return f"by signal {-code}"

    # --- pipes ------------------------------------------------------------------------------------

    def _send(self, message: Any, until: float) -> None:
        content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        rest = memoryview(REQUEST.pack(len(content)) + content)
        while rest:
            left = until - time.monotonic()
            if not self._writing.poll(1000 * max(0.0, min(left, LOOK_EVERY))):
                if not self.alive:
                    raise _Ended
                if left <= 0:
                    raise _Late
                continue
            try:
                rest = rest[os.write(self._requests, rest) :]
            except BlockingIOError:
                continue
            except OSError:
                raise _Ended from None

    def _next(self, until: float) -> tuple[bytes, bytes]:
        """Kind and content of the next answer."""
        while not self._told:
            left = until - time.monotonic()
            if self._reading.poll(1000 * max(0.0, min(left, LOOK_EVERY))):
                self._receive()
            elif not self.alive:
                with contextlib.suppress(BlockingIOError):
                    self._receive()
                if not self._told:
                    raise _Ended
            elif left <= 0:
                raise _Late
        return self._told.popleft()

    def _receive(self) -> None:
        received = os.read(self._answered, 2**16)
        if not received:
            raise _Ended
        data, start = self._answers + received, 0
        while len(data) - start >= ANSWER.size:
            kind, length = ANSWER.unpack_from(data, start)
            end = start + ANSWER.size + length
            if length > LONGEST_ANSWER:
                raise _Ended  # something else than our side wrote into the pipe
            if end > len(data):
                break
            self._told.append((kind, data[start + ANSWER.size : end]))
            start = end
        self._answers = data[start:]


def _outcome(kind: bytes, content: bytes) -> Outcome:
    if kind == VALUE and len(content) == NUMBER.size:
        return float(NUMBER.unpack(content)[0])
    if kind == NO_VALUE:
        return None
    if kind == FAILURE:
        return content.decode("utf-8", "replace")
    raise _Ended


class _Late(Exception):
    """The deadline passed."""


class _Ended(Exception):
    """The process is gone, or does not keep to the protocol, and has to go."""
