"""Conversations that tell much and then ask: what readers of such data sets share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from common.data.checks import Fault
from common.data.datasets.splitting import told_in_turns
from common.data.leftovers import Leftovers
from common.data.readers import placed_records
from common.episode import Fact, Interaction, Row
from common.text.values import contains_value, value_words, words

NO_EVIDENCE = "questions whose evidence is no turn: no facts"
LONG_ANSWER = "answers of more than max_answer_words words: no facts"


class Told:
    """Turns as they are told, none longer than a bound."""

    def __init__(self, max_words: int, where: str, left: Leftovers):
        self._max_words, self._where, self._left = max_words, where, left
        self.turns: list[Interaction] = []

    def add(self, query: str, answer: str) -> list[int]:
        """Tell an interaction in as many turns as it needs; their numbers."""
        first = len(self.turns)
        for piece in told_in_turns(query, answer, self._max_words, self._where, self._left):
            self.turns.append(Interaction(*piece, role="remember"))
        return list(range(first, len(self.turns)))

    def asked(
        self, question: str, answer: str, evidence: Sequence[int], max_answer_words: int
    ) -> Interaction:
        """A question for what was told. Its answer is a fact where it is short and `evidence`
        names turns: said in the last of those that say it, or in the last of all."""
        facts: tuple[Fact, ...] = ()
        if not evidence:
            self._left.add(NO_EVIDENCE, self._where)
        elif len(words(answer)) > max_answer_words or not value_words(answer):
            self._left.add(LONG_ANSWER, self._where)
        else:
            saying = [i for i in evidence if self._says(i, answer)]
            facts = (Fact(answer, max(saying or evidence)),)
        return Interaction(question, answer, role="recall" if facts else "act", facts=facts)

    def _says(self, turn: int, value: str) -> bool:
        said = self.turns[turn]
        return contains_value(said.query, value) or contains_value(said.answer, value)


def recall_row(told: Told, asked: Sequence[Interaction]) -> Row:
    """The conversation of all that was told, then all questions."""
    opening, *follow_ups = [*told.turns, *asked]
    return Row(opening.query, opening.answer, tuple(follow_ups))


def rows_of(
    sources: Sequence[str],
    faults_of: Callable[[Any], Iterable[Fault]],
    row_of: Callable[[str, dict[str, Any]], Row],
) -> list[Row]:
    """The row of each record of files. row_of: is called with where a record stands, and with the
    record. Raises InputError where a file is missing or wrong."""
    return [
        row_of(where, record)
        for source in sources
        for where, record in placed_records(source, faults_of)
    ]
