"""Whether conversations fit the interactions of a model, before hours are spent on playing them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from common.data.tokenizer import ConversationTokenizer
from common.episode import Row
from common.failures import InputError

TEMPLATE = 4
"""Tokens around a query at most: a text of so many bytes less surely fits."""


def require_fitting(
    rows: Sequence[Row], tokenizer: ConversationTokenizer, max_tokens: int, source: str
) -> None:
    """Raises InputError naming the first turn that a model cannot be asked, with the number of all
    of them: an opening that is longer than an interaction of `max_tokens`, or a query that leaves
    no room for an answer."""
    found = [
        (number, turn, tokens, query)
        for number, row in enumerate(rows, 1)
        for turn, tokens, query in _misfits(row, tokenizer, max_tokens)
    ]
    if not found:
        return
    number, turn, tokens, query = found[0]
    conversations = len({each[0] for each in found})
    raise InputError(
        f"{source}, conversation {number}, turn {turn}",
        f"{' '.join(query.split()[:6])!r} … has {tokens} tokens, and an interaction of the model "
        f"has at most {max_tokens}, answer included; {len(found):,} turns of {conversations:,} "
        "conversations do not fit. What reads the source divides long turns by sentences: "
        "layout=statement of bAbI, max_words of `engram data convert` and `synth long_context`",
    )


def _misfits(
    row: Row, tokenizer: ConversationTokenizer, max_tokens: int
) -> Iterator[tuple[int, int, str]]:
    """(turn, tokens, query) of each turn that does not fit."""
    for number, turn in enumerate(row.turns):
        said = turn.query if number else f"{turn.query} {turn.answer} {turn.think or ''}"
        if len(said.encode()) + TEMPLATE < max_tokens:
            continue
        if number:
            tokens = len(tokenizer.prompt(turn.query, think=turn.think is not None)) + 1
        else:
            tokens = len(tokenizer.interaction(turn))
        if tokens > max_tokens:
            yield number, tokens, turn.query
