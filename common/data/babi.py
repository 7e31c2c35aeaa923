"""The bAbI tasks (Weston et al. 2015, arXiv 1502.05698) as cumulative conversations.

A story "S0 Q0 S1 Q1 …" becomes turns of its own: every block of statements up to a question is one turn answered with "okay",
every question is a recall. Together in one turn, they would ask at distance 0 and test nothing. `Fact.said_in` is the turn of
the block that holds the last supporting statement. Values need not stand there literally: "yes", "nothing" and counts follow
from what was said, so such files pass `engram data validate` only with its literal check off.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

from common.data.synth import ACKNOWLEDGE
from common.episode import Fact, Interaction, Row
from common.failures import InputError


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a story: a statement, or a question with its answer and the lines that support it."""

    number: int
    text: str
    answer: str | None = None
    support: tuple[int, ...] = ()


def load(folder: str | Path, task: int, part: str, max_questions: int) -> list[Row]:
    """One row per story of qa{task}_*_{part}.txt, up to its `max_questions`-th question. part: train or test."""
    found = sorted(Path(folder).glob(f"qa{task}_*_{part}.txt"))
    if not found:
        raise InputError(str(Path(folder) / f"qa{task}_*_{part}.txt"), "there is no such file")
    return [story_row(story, max_questions) for story in stories(found[0])]


def stories(path: Path) -> list[list[Line]]:
    """Stories of one file. Lines count from 1 within a story; a question has tabs: text, answer, supporting lines."""
    told: list[list[Line]] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        head, _, rest = text.partition(" ")
        fields = [field.strip() for field in rest.split("\t")]
        if not head.isdecimal() or len(fields) not in (1, 3) or not all(fields) or (head != "1" and not told):
            raise InputError(f"{path}, line {number}", "should read 'number statement' or 'number question TAB answer TAB lines'")
        if head == "1":
            told.append([])
        support = tuple(int(part) for part in fields[2].split()) if len(fields) == 3 else ()
        told[-1].append(Line(int(head), fields[0], fields[1] if len(fields) == 3 else None, support))
    return told


def story_row(story: list[Line], max_questions: int) -> Row:
    turns: list[Interaction] = []
    block: list[str] = []
    turn_of: dict[int, int] = {}
    questions = 0
    for line in story:
        if line.answer is None:
            # The block becomes the next turn once a question closes it.
            turn_of[line.number] = len(turns)
            block.append(line.text)
            continue
        if block:
            turns.append(Interaction(" ".join(block), ACKNOWLEDGE, role="remember"))
            block = []
        values = [value.strip() for value in line.answer.split(",")]
        said_in = turn_of[max(line.support)]
        facts = tuple(Fact(value, said_in) for value in dict.fromkeys(values))
        turns.append(Interaction(line.text, ", ".join(values), role="recall", facts=facts))
        questions += 1
        if questions == max_questions:
            break
    opening, *follow_ups = turns
    return Row(opening.query, opening.answer, tuple(follow_ups), strategy="cumulative" if len(follow_ups) > 1 else "single")


def reading_pairs(row: Row) -> list[Interaction]:
    """Questions beside the very block that answers them, as one query: what SFT learns to read before memory has to hold it.

    Only questions whose facts were all said in the turn before; the others cannot be answered from it alone.
    """
    pairs = []
    for index, (before, turn) in enumerate(itertools.pairwise(row.turns), 1):
        if turn.facts and all(fact.said_in == index - 1 for fact in turn.facts):
            pairs.append(Interaction(f"{before.query} {turn.query}", turn.answer, role="act"))
    return pairs


def windows(row: Row) -> list[Row]:
    """The parts of a story that stand by themselves: from each later statement block on, up to the first question about what was said
    before it. Short conversations in which to learn what long ones repeat."""
    parts = []
    for start, opening in enumerate(row.turns):
        if start == 0 or opening.role != "remember":
            continue
        kept: list[Interaction] = []
        for turn in row.turns[start + 1 :]:
            if any(fact.said_in < start for fact in turn.facts):
                break
            kept.append(replace(turn, facts=tuple(Fact(fact.value, fact.said_in - start) for fact in turn.facts)))
        while kept and not kept[-1].facts:
            kept.pop()
        if kept:
            parts.append(Row(opening.query, opening.answer, tuple(kept), strategy="cumulative" if len(kept) > 1 else "single"))
    return parts
