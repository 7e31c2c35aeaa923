"""Whether an answer holds the facts that it was asked for, and no others.

Which values are wrong follows from what an episode carries. The values of all facts of all its turns are the values of this
conversation; a list of further known values may come with them (the values a data set draws from). Of these, a value is wrong
in an answer when the turn does not ask for it and neither its query nor its reference mentions it: it belongs to another
question, is out of date, or was never told. Right values are taken out of the answer before wrong ones are sought, so "York"
is not found inside "New York".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache

import numpy as np

from common.episode import Turn
from common.text import words


def recall_reward(turns: Iterable[Turn], known: Iterable[Collection[str]], false_recall: float) -> np.ndarray:
    """Recall of each turn: float64 [turns]; nan where a turn has no facts, and recall does not apply.

    known: for each turn the `marked` values of its conversation, and any others that could be confused with them.
    """
    return np.array(
        [recall(turn, values, false_recall) if turn.facts else np.nan for turn, values in zip(turns, known, strict=True)], dtype=np.float64
    )


def recall(turn: Turn, known: Collection[str], false_recall: float) -> float:
    """Share of the turn's facts whose value stands in the answer as whole words (common/text.py), minus `false_recall` times the
    share of wrong values among the values that stand in it: in [-false_recall, 1].

    So a guess at the wrong value costs in full, and so does a list of all values, which holds the right one too.
    """
    answer = marked(turn.answer)
    asked = [_marked_value(fact.value) for fact in turn.facts]
    for value, fact in zip(asked, turn.facts, strict=True):
        if not value.strip():
            raise ValueError(f"the value {fact.value!r} of a fact has no word that an answer could contain")
    wanted = {value: value in answer for value in asked}
    share = sum(wanted[value] for value in asked) / len(asked)
    if false_recall == 0:
        return share
    for value in sorted(wanted, key=len, reverse=True):
        answer = answer.replace(value, " | ")
    standing = [value for value in known if value in answer and value not in wanted]
    if not standing:
        return share
    context = marked(turn.query) + marked(turn.reference)
    wrong = sum(value not in context for value in standing)
    return share - false_recall * wrong / (wrong + sum(wanted.values())) if wrong else share


def marked(text: str) -> str:
    """The words of a text, each between spaces of its own: one marked text stands in another exactly if its words do, in order."""
    return f" {'  '.join(words(text))} "


@lru_cache(maxsize=8192)
def _marked_value(value: str) -> str:
    """Values come again and again, texts do not."""
    return marked(value)


def marked_values(values: Iterable[str]) -> frozenset[str]:
    """The values as `recall` takes them; those without a word cannot stand in an answer, and are left out."""
    return frozenset(value for value in map(_marked_value, values) if value.strip())
