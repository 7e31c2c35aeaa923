"""`engram data synth textworld` and `engram data walkthroughs`: games, and what they teach.

TextWorld makes the games, each in a process of its own, since making one sets its random numbers
for the whole process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from common.failures import InputError, nearest

MAKE_SECONDS = 300.0
"""For one game: Inform 7 compiles it."""


class Challenge(StrEnum):
    simple = "simple"
    coin = "coin"
    cooking = "cooking"


CHALLENGES: dict[Challenge, tuple[str, dict[str, Any]]] = {
    Challenge.simple: ("tw-simple", {"rewards": "dense", "goal": "detailed"}),
    Challenge.coin: ("tw-coin_collector", {"level": 5}),
    Challenge.cooking: (
        "tw-cooking",
        {"recipe": 2, "take": 2, "go": 6, "open": True, "cook": True, "cut": True, "drop": True},
    ),
}
"""TextWorld's name of each, and settings where none are given."""


def make_games(
    folder: Path, challenge: Challenge, count: int, seed: int, settings: list[str]
) -> list[Path]:
    """Games tw-CHALLENGE-SEED.z8 with seeds from `seed` on, each with its .json. settings: as
    KEY=VALUE. Raises InputError for a setting that the challenge has not, and where TextWorld
    cannot make a game."""
    from rollout.environments.game_process import require_textworld

    require_textworld()
    chosen = challenge_settings(challenge, settings)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(seed, seed + count):
        file = folder / f"tw-{challenge}-{number}.z8"
        if not file.is_file():
            asked = json.dumps([challenge, chosen, number, str(file)])
            command = [sys.executable, "-m", "deploy.text_games", asked]
            made = subprocess.run(command, capture_output=True, text=True, timeout=MAKE_SECONDS)
            if made.returncode or not file.is_file():
                said = (made.stderr.strip().splitlines() or ["it says nothing"])[-1]
                raise InputError(str(file), f"TextWorld could not make this game: {said}")
        found.append(file)
    return found


def challenge_settings(challenge: Challenge, words: list[str]) -> dict[str, Any]:
    """All settings of a challenge. Raises InputError for one that it has not, or a value that does
    not fit."""
    import textworld.challenges

    name, own = CHALLENGES[challenge]
    parser = argparse.ArgumentParser(add_help=False)
    textworld.challenges.CHALLENGES[name][2](parser)
    known = {action.dest: action for action in parser._actions}
    found = {dest: action.default for dest, action in known.items()} | own
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            raise InputError(word, f"is no KEY=VALUE of {name}; {nearest(key, known)}")
        found[key] = _value(word, value, known[key])
    return found


def _value(word: str, value: str, action: argparse.Action) -> Any:
    if action.nargs == 0:
        if value not in ("true", "false"):
            raise InputError(word, "should be true or false")
        return value == "true"
    try:
        typed: Any = action.type(value) if callable(action.type) else value
    except ValueError:
        raise InputError(word, f"{value!r} does not fit") from None
    if action.choices is not None and typed not in action.choices:
        raise InputError(word, nearest(str(typed), action.choices))
    return typed


def _make(challenge: Challenge, settings: Mapping[str, Any], seed: int, file: Path) -> None:
    """In a process of its own."""
    import textworld
    import textworld.challenges

    options = textworld.GameOptions()
    options.seeds, options.path, options.file_ext = seed, str(file.with_suffix("")), ".z8"
    make = textworld.challenges.CHALLENGES[CHALLENGES[challenge][0]][1]
    textworld.generator.compile_game(
        make(settings={**settings, "seed": seed}, options=options), options
    )


def write_walkthroughs(configs: list[Path], out: Path, settings: list[str]) -> tuple[int, int]:
    """A pair of prompt and action for each step of the walkthroughs of a configuration's games, as
    its environment asks; how many, and of how many games. Raises InputError where the configuration
    plays no games, or a game cannot be won."""
    from common.config.loader import load_run
    from common.data.conversations import save_pairs
    from common.failures import DataFailure
    from rollout.environments.table import ENVIRONMENTS

    environment = load_run(configs, settings).environment
    lead = ENVIRONMENTS[environment.kind].walkthroughs
    if lead is None:
        raise InputError(
            "environment.kind", f"{environment.kind} has no walkthroughs; textworld has"
        )
    try:
        games = lead(environment)
    except DataFailure as failure:
        raise InputError("environment.games", str(failure)) from failure
    pairs = [pair for game in games for pair in game]
    out.parent.mkdir(parents=True, exist_ok=True)
    save_pairs(pairs, out)
    return len(pairs), len(games)


if __name__ == "__main__":
    challenge_name, chosen_settings, game_seed, target = json.loads(sys.argv[1])
    _make(Challenge(challenge_name), chosen_settings, game_seed, Path(target))
