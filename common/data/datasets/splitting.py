"""Long texts as several interactions: what a model with a bounded interaction can be told."""

from __future__ import annotations

import re
from collections.abc import Iterator

from common.data.datasets.synth import ACKNOWLEDGE
from common.data.leftovers import Leftovers

GO_ON = "go on"
"""The query for the rest of a long answer."""
DIVIDED = "sentences of more than max_words words, divided between words"
SEVERAL = "interactions of more than max_words words, told in several"
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def chunks(text: str, max_words: int, where: str, left: Leftovers) -> list[str]:
    """A text in pieces of at most `max_words` words, as few as whole sentences allow. left: is told
    of sentences that are longer."""
    pieces: list[list[str]] = [[]]
    for sentence in _SENTENCE.split(text):
        words = sentence.split()
        if len(words) > max_words:
            left.add(DIVIDED, where)
        while words:
            room = max_words - len(pieces[-1])
            if pieces[-1] and len(words) > room:
                pieces.append([])
                continue
            pieces[-1] += words[:room]
            words = words[room:]
    return [" ".join(piece) for piece in pieces if piece]


def told_in_turns(
    query: str, answer: str, max_words: int, where: str, left: Leftovers
) -> Iterator[tuple[str, str]]:
    """An interaction as one or more, of which neither query nor answer has more than `max_words`
    words. All but the last piece of a query are answered with "okay", and all but the first piece
    of an answer are asked for."""
    asked, replies = (chunks(text, max_words, where, left) for text in (query, answer))
    if len(asked) + len(replies) > 2:
        left.add(SEVERAL, where)
    for piece in asked[:-1]:
        yield piece, ACKNOWLEDGE
    yield asked[-1], replies[0]
    for piece in replies[1:]:
        yield GO_ON, piece
