"""Long told turns of conversations as several, divided by sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from common.data.datasets.splitting import told_in_turns
from common.data.leftovers import Leftovers
from common.episode import Fact, Interaction, Row, Strategy
from common.text.values import contains_value

WHOLE_ANSWER = "answers of more than max_words words, left whole"
WHOLE_UNTOLD = (
    "queries of more than max_words words in turns that are not told or ask for facts, left whole"
)
WHOLE_COMPARED = (
    "openings and first follow-ups of more than max_words words in long_term conversations, left "
    "whole"
)
WHOLE_VALUE = "turns of more than max_words words in which a value would be cut, left whole"


def divided(row: Row, max_words: int, where: str, left: Leftovers) -> Row:
    """The row with every told turn whose query has more than `max_words` words told in several
    turns, by whole sentences; `said_in` follows the values.

    left: is told of what was divided, and of long turns that stay whole: a question is one turn,
    of an answer that the policy gives no part can stand in another, the rewards of a `long_term`
    conversation compare by its first two turns (reward_service/comparison.py), and a turn must say
    the whole of a value. where: file and row.
    """
    turns: list[Interaction] = []
    pieces_of: list[range] = []
    """Turns of the result that each turn has become."""
    values: dict[int, list[str]] = defaultdict(list)
    for fact in (fact for turn in row.turns for fact in turn.facts):
        values[fact.said_in].append(fact.value)
    for number, turn in enumerate(row.turns):
        first, whole = len(turns), stays_whole(row.strategy, number, turn)
        turns += _pieces(turn, whole, values[number], max_words, where, left)
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


def stays_whole(strategy: Strategy, number: int, turn: Interaction) -> str | None:
    """Why a turn stays whole, however long its query is; None where `divided` may tell it in
    several. number: of the turn, the opening being 0."""
    if turn.role != "remember" or turn.facts:
        return WHOLE_UNTOLD
    if strategy == "long_term" and number < 2:
        return WHOLE_COMPARED
    return None


def _pieces(
    turn: Interaction,
    whole: str | None,
    values: Sequence[str],
    max_words: int,
    where: str,
    left: Leftovers,
) -> list[Interaction]:
    """The turn, or what it is told in. whole: why it stays whole. values: that it must say."""
    found = Leftovers()
    pieces = [turn]
    if len(turn.answer.split()) > max_words:
        found.add(WHOLE_ANSWER, where)
    elif len(turn.query.split()) > max_words:
        told = _told(turn, max_words, where, found)
        if whole is None and any(
            _says(turn, each) and not any(_says(one, each) for one in told) for each in values
        ):
            whole = WHOLE_VALUE
        if whole is None:
            pieces = told
        else:
            found = Leftovers()
            found.add(whole, where)
    for entry in found.entries():
        left.add(entry.what, entry.first, entry.number)
    return pieces


def _told(turn: Interaction, max_words: int, where: str, left: Leftovers) -> list[Interaction]:
    told = list(told_in_turns(turn.query, turn.answer, max_words, where, left))
    last = len(told) - 1
    return [
        replace(turn, query=query, answer=answer, think=turn.think if i == last else None)
        for i, (query, answer) in enumerate(told)
    ]


def _moved(fact: Fact, turns: Sequence[Interaction], pieces_of: Sequence[range]) -> Fact:
    """The fact with the turn that last says it now: the last piece whose query or answer does."""
    pieces = pieces_of[fact.said_in]
    saying = [piece for piece in pieces if _says(turns[piece], fact.value)]
    return replace(fact, said_in=(saying or pieces)[-1])


def _says(turn: Interaction, value: str) -> bool:
    return contains_value(turn.query, value) or contains_value(turn.answer, value)
