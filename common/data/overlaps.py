"""Conversations that stand in more than one place: what training has seen is no held-out figure.

Two conversations are the same where all that is said in them is (`conversation_hash`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from common.data.splits import conversation_hash
from common.episode import Row

Placed = Sequence[tuple[str, Row]]
"""Conversations, each with where it stands."""


def repeated(rows: Placed) -> list[tuple[str, str]]:
    """(place, first place) of each conversation that stands there again."""
    first: dict[str, str] = {}
    found = []
    for where, row in rows:
        before = first.setdefault(conversation_hash(row), where)
        if before != where:
            found.append((where, before))
    return found


def in_both(train: Placed, held_out: Placed) -> list[tuple[str, str]]:
    """(place in held_out, first place in train) of each held-out conversation that is trained
    on."""
    first: dict[str, str] = {}
    for where, row in train:
        first.setdefault(conversation_hash(row), where)
    found = ((where, first.get(conversation_hash(row))) for where, row in held_out)
    return [(where, before) for where, before in found if before is not None]


def count_in_both(train: Iterable[Row], held_out: Iterable[Row]) -> int:
    """How many held-out conversations are trained on too."""
    known = {conversation_hash(row) for row in train}
    return sum(conversation_hash(row) in known for row in held_out)
