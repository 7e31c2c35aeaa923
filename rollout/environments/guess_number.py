"""A game as an example of an environment: a number is told once, and is to be guessed.

    told    The number is 6.          written to memory; not in sight of any answer
    query   Guess.                    answer 3
    query   Higher than 3.            answer 7
    query   Lower than 7.             answer 6: the episode is over, and pays 1

Two things help: the last hint, which stands in the query, and the number itself, which memory was
told. `python -m rollout.environments.guess_number FILE` writes conversations for the supervised
stages, which teach the form of an answer and nothing of how to play: every answer in them is drawn
at random. `configs/game.yaml` trains on both.
"""

from __future__ import annotations

import random
import string
import sys
from typing import Any

import gymnasium
from gymnasium import spaces

from common.data.conversations import save_rows
from common.episode import Interaction, Row

FIRST_QUERY = "Guess."


def told(number: int) -> tuple[str, str]:
    """The opening: what memory is written with."""
    return f"The number is {number}.", "Yes."


def hint(guess: int, number: int) -> str:
    return f"Higher than {guess}." if number > guess else f"Lower than {guess}."


class GuessNumber(gymnasium.Env[str, str]):
    """Observation: the query, which says how the last guess was wrong. Action: a guess. A right one
    pays 1 and ends the episode, any other pays 0; what is no number gets the same query again."""

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's own attribute)
    observation_space = spaces.Text(64, charset=string.printable)
    action_space = spaces.Text(64, charset=string.printable)

    def __init__(self, highest: int = 9):
        self.highest = highest
        self._number = 0
        self._query = FIRST_QUERY

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self._number = int(self.np_random.integers(1, self.highest + 1))
        self._query = FIRST_QUERY
        return self._query, {"opening": told(self._number), "reference": str(self._number)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        guess = int(action) if action.isascii() and action.isdigit() else None
        right = guess == self._number
        if guess is not None and not right:
            self._query = hint(min(guess, self.highest + 1), self._number)
        return self._query, float(right), right, False, {"reference": str(self._number)}


def random_play(count: int, highest: int, guesses: int, seed: int = 0) -> list[Row]:
    """Conversations of players that name any number."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        number, query = draw.randint(1, highest), FIRST_QUERY
        turns = []
        for _ in range(guesses):
            guess = draw.randint(1, highest)
            turns.append(Interaction(query, str(guess)))
            if guess == number:
                break
            query = hint(guess, number)
        rows.append(Row(*told(number), tuple(turns)))
    return rows


if __name__ == "__main__":
    save_rows(random_play(120, highest=9, guesses=4), sys.argv[1])
