"""Long told turns of conversations as several, divided by sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from common.data.datasets.splitting import told_in_turns
from common.data.leftovers import Leftovers
from common.episode import Fact, Interaction, Row
from common.text.values import contains_value

WHOLE_QUESTION = "questions of more than max_words words, left whole"
WHOLE_ANSWER = "answers of more than max_words words, left whole"


def divided(row: Row, max_words: int, where: str, left: Leftovers) -> Row:
    """The row with every told turn whose query has more than `max_words` words told in several
    turns, by whole sentences; `said_in` follows the values.

    left: is told of what was divided, and of long turns that stay whole: a question is one turn,
    and of an answer that the policy gives no part can stand in another. where: file and row.
    """
    turns: list[Interaction] = []
    pieces_of: list[range] = []
    """Turns of the result that each turn has become."""
    for turn in row.turns:
        first = len(turns)
        turns += _pieces(turn, max_words, where, left)
        pieces_of.append(range(first, len(turns)))
    if len(turns) == len(row.turns):
        return row
    opening, *follow_ups = (
        replace(turn, facts=tuple(_moved(fact, turns, pieces_of) for fact in turn.facts))
        for turn in turns
    )
    several = row.strategy == "single" and len(follow_ups) > 1
    return replace(
        row,
        query=opening.query,
        answer=opening.answer,
        think=opening.think,
        interactions=tuple(follow_ups),
        strategy="cumulative" if several else row.strategy,
    )


def _pieces(turn: Interaction, max_words: int, where: str, left: Leftovers) -> list[Interaction]:
    if len(turn.answer.split()) > max_words:
        left.add(WHOLE_ANSWER, where)
    elif len(turn.query.split()) > max_words:
        if turn.role == "remember" and not turn.facts:
            told = list(told_in_turns(turn.query, turn.answer, max_words, where, left))
            last = len(told) - 1
            return [
                replace(turn, query=query, answer=answer, think=turn.think if i == last else None)
                for i, (query, answer) in enumerate(told)
            ]
        left.add(WHOLE_QUESTION, where)
    return [turn]


def _moved(fact: Fact, turns: Sequence[Interaction], pieces_of: Sequence[range]) -> Fact:
    """The fact with the turn that last says it now: the last piece whose query or answer does."""
    pieces = pieces_of[fact.said_in]
    saying = [
        piece
        for piece in pieces
        if contains_value(turns[piece].query, fact.value)
        or contains_value(turns[piece].answer, fact.value)
    ]
    return replace(fact, said_in=(saying or pieces)[-1])
