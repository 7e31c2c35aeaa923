"""Foreign text on a terminal: what a data file, a model or a user's code says must not be able to
steer it, and must not end a command because the terminal's encoding lacks a character."""

from __future__ import annotations

import io
import re
from typing import TextIO

_LINE_END = re.compile(r"\r\n")
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb]"
)
"""Control characters except tab and line feed, marks that turn the direction of what follows, and
halves of characters, which no terminal can be sent."""


def printable(text: str) -> str:
    """The text with U+FFFD in place of each character that could steer a terminal."""
    return _STEERING.sub("\ufffd", _LINE_END.sub("\n", text))


def print_anything(stream: TextIO) -> None:
    """Have a stream write characters that its encoding lacks as `?` from now on, instead of raising
    UnicodeEncodeError."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
