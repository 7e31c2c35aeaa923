"""Which split a conversation belongs to, by the hash of its words: a pure function of the
conversation, so that no split moves when data is added, reordered or drawn with another seed."""

from __future__ import annotations

import hashlib

from common.episode import Row


def conversation_hash(row: Row) -> str:
    """Hex digest of all that is said in a conversation; equal for conversations of the same
    words."""
    return text_hash("\x1e".join(f"{turn.query}\x1f{turn.answer}" for turn in row.turns))


def text_hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def fraction(digest: str) -> float:
    """Place of a digest in [0, 1), uniform over conversations."""
    return int(digest[:13], 16) / 16**13
