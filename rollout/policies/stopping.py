"""Where an answer ends although the model did not say so: strings that stop it.

Matched over bytes, because a token may hold part of a character and a string may begin in one token and end in another.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.data.tokenizer import ConversationTokenizer


class StopStrings:
    """For one tokenizer. Falsy where there is nothing to look for."""

    def __init__(self, stop: Sequence[str], tokenizer: ConversationTokenizer):
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

    def cut(self, text: str) -> str:
        """`text` up to the first stop string in it."""
        found = [at for stop in self._stop if (at := text.find(stop.decode())) >= 0]
        return text[: min(found)].rstrip() if found else text
