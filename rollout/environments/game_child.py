"""The processes that text games run in: one that has TextWorld loaded and starts the others, and
one for each game, since what interprets games is C code that ends its process where a file is
damaged.

The starter is told a game over `control` and gets the socket that its player talks over; it answers
with the process id of the child it forks. Messages are lines of JSON. A player ends when its socket
is closed, the starter when `control` is; what is damaged ends a child at most.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

LONGEST = 2**16
"""Bytes of the message that names a game."""
Z_HEADER, Z_LENGTH, Z_SUM, Z_UNIT = 64, slice(26, 28), slice(28, 30), 8
"""Header of a story file, version 8 (The Z-Machine Standards Document 1.1, section 11): where its
length, in units, and the sum of what follows the header stand."""
CONTROLS = {
    "q", "quit", "restart", "restore", "save", "script", "transcript", "undo", "verify", "version",
}  # fmt: skip
"""Commands to what plays a game and not to the game: they would end it, or read and write files."""
REFUSED = "You can't do that here."
WANTED = (
    "feedback", "description", "inventory", "objective", "admissible_commands", "policy_commands",
    "score", "max_score", "won", "lost", "last_action",
)  # fmt: skip


@dataclass(frozen=True)
class GameState:
    """A game after an action, or at its start."""

    observation: str
    """Words of the game; at its start what is seen, since it says its name in large letters."""
    room: str
    """The room as it is seen now."""
    inventory: str
    objective: str
    valid: list[str]
    """Actions that the game allows now."""
    walkthrough: list[str]
    """Actions that win it from its start."""
    policy: list[str]
    """Actions that win it from here; empty where TextWorld does not know."""
    score: float
    most: float
    """The highest score."""
    won: bool
    lost: bool
    over: bool
    taken: bool
    """Whether the last action was understood and allowed."""


class Unplayable(Exception):
    """A file that is no game of TextWorld's, in a clause."""


def require_story(file: Path) -> None:
    """Raises Unplayable where a file is no whole story file: what interprets it would not say
    why."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise Unplayable(f"cannot be read: {error.strerror}") from None
    if len(content) < Z_HEADER or content[0] != 8:
        raise Unplayable("is no story file of version 8 (.z8)")
    length = int.from_bytes(content[Z_LENGTH], "big") * Z_UNIT
    if len(content) < length:
        raise Unplayable(f"is cut off: it has {len(content):,} of {length:,} bytes")
    if sum(content[Z_HEADER:length]) % 2**16 != int.from_bytes(content[Z_SUM], "big"):
        raise Unplayable("is damaged: its bytes do not add up to the sum in its header")
    if not file.with_suffix(".json").is_file():
        raise Unplayable(
            f"has no {file.stem}.json beside it, which TextWorld writes with a game of its own"
        )


class Player:
    """One game, in this process."""

    def __init__(self, file: str):
        import textworld

        require_story(Path(file))
        infos = textworld.EnvInfos(**dict.fromkeys(WANTED, True), extras=["walkthrough"])
        try:
            self._env = textworld.start(file, request_infos=infos)
            self._seen = self._env.reset()
            self.state = replace(self._state(taken=True, over=False), observation=self._room)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise Unplayable(f"is no game that TextWorld can begin ({told[:200]})") from error

    def step(self, action: str) -> GameState:
        if action.split(" ")[0] in CONTROLS:
            self.state = replace(self.state, observation=REFUSED, taken=False)
            return self.state
        before, allowed = self._seen.get("last_action"), self.state.valid
        self._seen, _, over = self._env.step(action)
        # The engine goes on to name the last action that it understood.
        taken = action in allowed or self._seen.get("last_action") != before
        self.state = self._state(taken, bool(over))
        return self.state

    @property
    def _room(self) -> str:
        return self._seen["description"] or ""

    def _state(self, taken: bool, over: bool) -> GameState:
        seen: dict[str, Any] = self._seen
        return GameState(
            observation=seen["feedback"] or "",
            room=self._room,
            inventory=seen["inventory"] or "",
            objective=seen["objective"] or "",
            valid=sorted(seen["admissible_commands"] or ()),
            walkthrough=list(seen.get("extra.walkthrough") or ()),
            policy=list(seen["policy_commands"] or ()),
            score=float(seen["score"] or 0),
            most=float(seen["max_score"] or 0),
            won=bool(seen["won"]),
            lost=bool(seen["lost"]),
            over=over or bool(seen["won"]) or bool(seen["lost"]),
            taken=taken,
        )


def play(file: str, talk: socket.socket) -> None:
    """Begin a game, then take an action a line, until the socket is closed."""
    with talk, talk.makefile("r", encoding="utf-8") as lines:

        def tell(message: dict[str, Any]) -> None:
            talk.sendall(json.dumps(message).encode() + b"\n")

        try:
            player = Player(file)
        except Unplayable as why:
            tell({"failure": str(why)})
            return
        tell(asdict(player.state))
        for line in lines:
            tell(asdict(player.step(json.loads(line))))


def _warm(file: str) -> None:
    """Load, once for all children, what the first game of a process loads."""
    from textworld.generator.game import Game

    try:
        Game.load(str(Path(file).with_suffix(".json")))
    except Exception as error:  # noqa: BLE001 - its child will say so
        print(f"{file}: {error}", file=sys.stderr)


def main(descriptor: int) -> None:
    import textworld  # noqa: F401 - in every child from the start

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    warm = False
    with socket.socket(fileno=descriptor) as control:
        while True:
            message, given, _, _ = socket.recv_fds(control, LONGEST, 1)
            if not message:
                return
            file = message.decode()
            if not warm:
                _warm(file)
                warm = True
            child = os.fork()
            if child == 0:
                control.close()
                try:
                    play(file, socket.socket(fileno=given[0]))
                finally:
                    sys.stderr.flush()
                    os._exit(0)
            os.close(given[0])
            control.sendall(child.to_bytes(8, "little"))
