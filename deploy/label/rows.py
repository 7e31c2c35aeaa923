"""Judgements as rows that a run trains on: preferences for a reward model, demonstrations for
lm_sft; and preferences of other programs as judgements."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from common.data.preferences import Preference, group_of
from common.episode import Interaction
from common.text.counted import counted
from deploy.label.judgements import MOST_ANSWERS, Judgement, Question


@dataclass(frozen=True)
class Rows:
    preferences: list[Preference]
    demonstrations: list[Interaction]
    """Prompt and written answer."""
    undecided: int
    """Judgements that rank nothing: all alike, or all bad."""
    later: int
    """Demonstrations left out, because something was said before their prompt."""
    empty: int
    """Demonstrations left out, because nothing is written in them."""


def rows_of(judgements: Iterable[Judgement]) -> Rows:
    """judgements: those that count. Two people who differ on a question both have their row."""
    preferences: list[Preference] = []
    demonstrations: list[Interaction] = []
    undecided = later = empty = 0
    for judgement in judgements:
        ranked = preferences_of(judgement)
        preferences += ranked
        undecided += judgement.verdict in ("ranked", "all_bad") and not ranked
        written = (judgement.written or "").strip()
        if written and judgement.question.history:
            later += 1
        elif written:
            demonstrations.append(Interaction(judgement.question.prompt, written))
        empty += judgement.verdict == "demonstration" and not written
    return Rows(preferences, demonstrations, undecided, later, empty)


def preferences_of(judgement: Judgement) -> list[Preference]:
    """One ranking, or where answers are tied a pair for each two that are not."""
    if judgement.ranks is None:
        return []
    question = judgement.question
    ranked = sorted(zip(judgement.ranks, question.answers, strict=True), key=lambda each: each[0])
    group = group_of(question.history, question.prompt)
    if len({rank for rank, _ in ranked}) == len(ranked):
        orders: list[tuple[str, ...]] = [tuple(answer for _, answer in ranked)]
    else:
        orders = [
            (better, worse)
            for (high, better), (low, worse) in combinations(ranked, 2)
            if high < low
        ]
    return [
        Preference(question.prompt, order, history=question.history, group=group)
        for order in orders
    ]


def judgements_of(preferences: Sequence[Preference], labeller: str, now: float) -> list[Judgement]:
    """As if the labeller had ranked them. More than four answers cannot be shown again."""
    found = []
    for preference in preferences:
        count = len(preference.answers)
        question = Question(preference.prompt, preference.answers, preference.history)
        found.append(
            Judgement(
                uuid.uuid4().hex,
                labeller,
                question,
                tuple(range(count)),
                "ranked",
                tuple(range(1, count + 1)),
                None,
                now,
            )
        )
    return [each for each in found if len(each.question.answers) <= MOST_ANSWERS]


def rows_sentences(rows: Rows) -> list[str]:
    """Sentences on judgements that the rows leave out, with the reason."""
    found = []
    if rows.undecided:
        found.append(
            f"{counted(rows.undecided, 'judgements')} without a row: all answers alike or all bad"
        )
    if rows.later:
        found.append(
            f"{counted(rows.later, 'written answers')} without a row of {{query, answer}}: "
            "something was said before; label_studio.json has them"
        )
    if rows.empty:
        found.append(f"{counted(rows.empty, 'demonstrations')} without a row: nothing is written")
    return found
