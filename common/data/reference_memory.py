"""The text memories that a policy is taught to write before it learns by reinforcement: what was
told so far, one statement a line, without those that a later one replaced.

A statement is the query of a turn with role "remember", or of one that a fact of the conversation
was said in. Whether a later statement replaces it is for common/data/changes.py, which knows it by
its words, and for the facts of the row, which name the values that they replaced. So what is
written does not depend on what is asked afterwards, which the policy cannot know.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

from common.data.changes import clauses, replacement
from common.episode import Row
from common.text.values import contains_value


class ReferenceMemories:
    """values: those that statements may hold, such as all that facts of the data name."""

    def __init__(self, values: Collection[str]):
        self._values = sorted(values)
        # Generated conversations say the same again and again.
        self._values_in = lru_cache(maxsize=None)(self._found)

    def of(self, row: Row) -> list[str]:
        """The memory after each turn of the row, the opening's first."""
        queries = [turn.query for turn in row.turns]
        facts = [fact for turn in row.interactions for fact in turn.facts]
        said = {fact.said_in for fact in facts}
        told = [i for i, turn in enumerate(row.turns) if turn.role == "remember" or i in said]
        told = [i for i in told if queries[i].strip()]
        ends = {i: len(queries) for i in told}
        for i in told:
            replaced_by = [
                fact.said_in
                for fact in facts
                if fact.said_in > i
                and any(contains_value(queries[i], old) for old in fact.outdated)
            ]
            later = self._replaced(queries, i)
            ends[i] = min([ends[i], *replaced_by, *([] if later is None else [later])])
        return [
            "\n".join(_line(queries[i]) for i in told if i <= turn < ends[i])
            for turn in range(len(queries))
        ]

    def _replaced(self, queries: Sequence[str], told: int) -> int | None:
        """The turn that replaced a statement; None where no later one did."""
        statement, said = queries[told], clauses(queries)
        known = {value for query in queries for value in self._values_in(query)}
        turns = []
        for value in self._values_in(statement):
            later = replacement(said, value, statement, known - {value})
            if later is None or later.turn <= told:
                return None  # a statement of several values holds as long as one of them does
            turns.append(later.turn)
        return max(turns, default=None)

    def _found(self, query: str) -> tuple[str, ...]:
        return tuple(value for value in self._values if contains_value(query, value))


def _line(text: str) -> str:
    return " ".join(text.split())
