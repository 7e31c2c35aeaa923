"""Where an answer ends although the model did not say so: strings that stop it.

Matched over bytes, because a token may hold part of a character and a string may begin in one token
and end in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class BytesOfTokens(Protocol):
    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        ...


class StopStrings:
    """For one tokenizer. Falsy where there is nothing to look for."""

    def __init__(self, stop: Sequence[str], tokenizer: BytesOfTokens):
        self._stop, self._tokenizer = tuple(text.encode() for text in stop), tokenizer
        self._longest = max(map(len, self._stop), default=0)

    def __bool__(self) -> bool:
        return bool(self._stop)

    def reached(self, answer: Sequence[int]) -> bool:
        """Whether a stop string ends in the last token of `answer`, when none ended before it."""
        tail = b""
        for token in reversed(answer):
            tail = self._tokenizer.token_bytes(token) + tail
            if len(tail) >= self._longest + len(self._tokenizer.token_bytes(answer[-1])):
                break
        return any(text in tail for text in self._stop)

    def begun(self, text: str) -> int:
        """Characters at the end of `text` that may be the beginning of a stop string: not to be
        shown yet."""
        stops = [stop.decode() for stop in self._stop]
        return max(
            (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
        )

    def cut(self, text: str) -> str:
        """`text` up to the first stop string in it."""
        found = [at for stop in self._stop if (at := text.find(stop.decode())) >= 0]
        return text[: min(found)].rstrip() if found else text
