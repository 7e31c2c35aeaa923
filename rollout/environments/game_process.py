"""Text games in processes of their own, from the side that plays them (`game_child.py`).

One process of TextWorld is started for this one and forks a child for each game, in milliseconds.
Every wait has a deadline. A game whose process is gone or late fails alone: the next one gets
another.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from common.failures import DataFailure, InputError
from rollout.environments.game_child import GameState

START_SECONDS = 120.0
"""For loading TextWorld, which takes seconds on a busy machine."""
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from "
    "rollout.environments.game_child import main; main(int(sys.argv[2]))"
)


class _Starter:
    """The process that starts games."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None

    def start(self, file: str) -> tuple[int, socket.socket]:
        """A process that plays `file`: its id, and the socket to talk to it. Raises DataFailure
        where it cannot be started."""
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            for _ in range(2):  # the second time with a new process, where the old one is gone
                control = self._control or self._begin()
                try:
                    socket.send_fds(control, [file.encode()], [theirs.fileno()])
                    child = control.recv(8)
                except OSError:
                    child = b""
                if child:
                    return int.from_bytes(child, "little"), ours
                control.close()
                self._control = None
        ours.close()
        raise DataFailure("the process that starts text games ended as it was asked for one")

    def _begin(self) -> socket.socket:
        require_textworld()
        ours, theirs = socket.socketpair()
        places = json.dumps([os.path.abspath(place) for place in sys.path])
        with theirs:
            subprocess.Popen(
                [sys.executable, "-c", _START, places, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a game prints is no part of the result of a command
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # an interrupt at the terminal is for us
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        ours.settimeout(START_SECONDS)
        self._control = ours
        return ours


_STARTER = _Starter()


def require_textworld() -> None:
    """Raises InputError where the package is not installed."""
    if importlib.util.find_spec("textworld") is None:
        raise InputError(
            "environment.kind",
            "textworld needs the package textworld: pip install 'engram-rl[textworld]'",
        )


def game_files(games: tuple[str, ...]) -> list[str]:
    """The files of a setting `games`: of a folder all in it, by name. Raises InputError where there
    is none."""
    found: list[str] = []
    for name in games:
        place = Path(name)
        inside = sorted(str(file) for file in place.glob("*.z8")) if place.is_dir() else [name]
        if not inside:
            raise InputError(f"environment.games: {name}", "there is no .z8 file in this folder")
        found += inside
    return found


class GameProcess:
    """One game, begun at once. Raises DataFailure where it does not begin within `deadline`
    seconds; `close` ends its process."""

    def __init__(self, file: str, deadline: float):
        self._name, self._deadline, self._rest = Path(file).name, deadline, b""
        self._asked = "begin"
        if not Path(file).is_file():
            raise DataFailure(f"game {file}: there is no such file")
        self._process, self._talk = _STARTER.start(file)
        self.state = self._answer()

    def send(self, action: str) -> None:
        """Have the game take an action; `receive` waits for what comes of it."""
        self._asked = f"take {action!r}"
        # A broken socket is noticed by who waits for the answer.
        with contextlib.suppress(OSError):
            self._talk.sendall(json.dumps(action).encode() + b"\n")

    def receive(self) -> GameState:
        """The game after the action that was sent. Raises DataFailure where its process ended or
        was late; the game is then over."""
        self.state = self._answer()
        return self.state

    def close(self) -> None:
        self._talk.close()

    def _answer(self) -> GameState:
        try:
            told = json.loads(self._line(time.monotonic() + self._deadline))
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)
            what = f"did not {self._asked} within {self._deadline:g} s, and its process was ended"
            raise self._failure(what) from None
        except (OSError, ValueError):
            raise self._failure(f"ended its process as it was to {self._asked}") from None
        if "failure" in told:
            raise self._failure(told["failure"])
        return GameState(**told)

    def _failure(self, what: str) -> DataFailure:
        self.close()
        return DataFailure(f"game {self._name} {what}")

    def _line(self, until: float) -> bytes:
        while b"\n" not in self._rest:
            self._talk.settimeout(max(0.001, until - time.monotonic()))
            received = self._talk.recv(2**16)
            if not received:
                raise ConnectionError
            self._rest += received
        line, self._rest = self._rest.split(b"\n", 1)
        return line
