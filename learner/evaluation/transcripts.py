"""A few played conversations as text for a log: what was told, what was asked, what was answered,
and whether it was right."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from common.episode import Episode, Turn
from common.text.counted import counted
from common.text.values import words
from learner.hacking import shown
from reward_service.components.recall import (
    Words,
    conversation_values,
    named_values,
    words_of_values,
)

CONVERSATIONS = 3
LONGEST = 120
"""Characters of each text."""


def transcripts(episodes: Sequence[Episode], known_values: Collection[str] = ()) -> str:
    """The first conversations, which an evaluation takes from different sources and lengths.

    known_values: values that a wrong answer may hold, besides those of the conversation itself.
    """
    everywhere = words_of_values(known_values)
    some = episodes[:CONVERSATIONS]
    lines = [f"{len(some)} of {counted(len(episodes), 'conversations')}"]
    for episode in some:
        known = words_of_values(conversation_values(episode.turns)) | everywhere
        opening = episode.turns[0]
        lines.append(f"  {episode.id}")
        if opening.query or opening.answer:
            lines.append(f'    told "{shown(" ".join(opening.exchange), LONGEST)}"')
        lines += [f"    {_line(turn, known)}" for turn in episode.answered]
    return "\n".join(lines)


def _line(turn: Turn, known: Collection[Words]) -> str:
    verb = "told" if turn.role == "remember" else "asked"
    line = f'{verb} "{shown(turn.query, LONGEST)}", answered "{shown(turn.answer, LONGEST)}"'
    right = is_right(turn, known)
    if right is None:
        return line
    if right:
        return f"{line}: right"
    return f'{line}: wrong, expected "{shown(turn.reference, LONGEST)}"'


def is_right(turn: Turn, known: Collection[Words]) -> bool | None:
    """Whether the answer to a question names every value asked for and no wrong one, or any other
    answer has the words of its reference; None where there is neither."""
    if turn.facts:
        return named_values(turn, known).exact
    if not turn.reference.strip():
        return None
    return words(turn.answer) == words(turn.reference)
