"""A reward of one's own: answers that say please."""

from typing import Any


def polite(turn: Any, word: str = "please") -> float:
    return float(word in turn.answer)
