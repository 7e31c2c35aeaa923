"""Dialogues in one text: `Human: … Assistant: …`, as in Anthropic's HH sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LABELS = "Human|User|Assistant|System"
_FIRST = re.compile(rf"\s*(?:{_LABELS}):")
_AFTER_BLANK = re.compile(rf"(?:\A\s*|\n[ \t]*\n\s*)({_LABELS}):")
_ON_A_LINE = re.compile(rf"(?:\A\s*|\n[ \t]*)({_LABELS}):")


def is_transcript(text: str) -> bool:
    """Whether a text begins with the name of a speaker."""
    return _FIRST.match(text) is not None


def transcript_messages(text: str) -> list[Mapping[str, Any]]:
    """The messages of a transcript. Where speakers stand after blank lines, as in HH, a speaker's
    name at the beginning of another line belongs to what is said."""
    label = _AFTER_BLANK if len(_AFTER_BLANK.findall(text)) > 1 else _ON_A_LINE
    _, *pieces = label.split(text)
    return [
        {"role": speaker.lower(), "content": said}
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]
