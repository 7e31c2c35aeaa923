"""The bAbI tasks (Weston et al. 2015, arXiv 1502.05698) as cumulative conversations.

A story "S0 Q0 S1 Q1 …" becomes turns of its own: every block of statements up to a question is one
turn answered with "okay", or every statement is; every question is a recall. Statement and question
together in one turn would ask at distance 0 and test nothing.

`Fact.said_in` means what it means in generated data (common/data/datasets/synth.py): the turn that
last said the value as the answer to this question. That is the last supporting statement that says
it, or an answer to the same question since then. "yes", "nothing" and counts follow from the
statements without standing in one: they count as said by the last of them. For that, and because a
place is a value for everybody who is there, files pass `engram data validate` only with its literal
check off.

An answer may need statements of several turns. A part of a story must hold them all, or it teaches
to guess.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path

from common.config.data import BabiData, Layout
from common.data.corpus import Corpus, carved
from common.data.datasets.synth import ACKNOWLEDGE
from common.data.decoding import read_text
from common.data.splits import conversation_hash
from common.episode import Fact, Interaction, Row, Strategy
from common.failures import InputError
from common.text.values import contains_value

_TASK = re.compile(r"qa(\d+)_")
LONGEST_NUMBER = 9
"""Digits of the number of a line, at most."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a story: a statement, or a question with its answer and the lines that support
    it."""

    number: int
    text: str
    answer: str | None = None
    support: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Story:
    """A story as a conversation, and what each of its questions needs."""

    row: Row
    support: tuple[frozenset[int], ...]
    """For each turn, the turns of all statements that its answer follows from; empty where the turn
    asks nothing."""


def babi_corpus(data: BabiData, seed: int) -> Corpus:
    """The tasks that the settings name. Parts of training stories are conversations too, and what a
    question needs is a pair to read."""

    def told_in(part: str) -> list[Story]:
        return [
            story
            for task in data.tasks
            for story in load(data.folder, task, part, data.max_questions, data.layout)
        ]

    told, test = told_in("train"), [story.row for story in told_in("test")]
    keyed = [(conversation_hash(story.row), story.row) for story in told]
    corpus = carved(keyed, test, data.eval_fraction)
    learnt = set(corpus.train)
    learnt_stories = [story for story in told if story.row in learnt]
    read = [pair for story in learnt_stories for pair in reading_pairs(story)]
    held = {conversation_hash(row) for row in corpus.eval + corpus.test}
    parts = [
        part
        for story in learnt_stories
        for part in windows(story)
        if conversation_hash(part) not in held
    ]
    return replace(
        corpus,
        train=corpus.train + parts,
        pairs=corpus.pairs + read,
        texts=corpus.texts + [f"{pair.query} {pair.answer}" for pair in read],
        shorter="data.layout=statement" if data.layout == "block" else "",
    )


def load(
    folder: str | Path, task: int, part: str, max_questions: int, layout: Layout = "block"
) -> list[Story]:
    """The stories of qa{task}_*_{part}.txt, each up to its `max_questions`-th question. part: train
    or test. InputError where there is no such file, with the tasks that have one."""
    found = sorted(Path(folder).glob(f"qa{task}_*_{part}.txt"))
    if not found:
        named = (_TASK.match(path.name) for path in Path(folder).glob(f"qa*_{part}.txt"))
        there = sorted(int(name[1]) for name in named if name)
        known = f"; tasks {', '.join(map(str, there))} have one" if there else ""
        raise InputError(
            str(Path(folder) / f"qa{task}_*_{part}.txt"), f"there is no such file{known}"
        )
    made = [conversation(lines, max_questions, layout) for lines in stories(found[0])]
    return [replace(story, row=replace(story.row, source=f"task {task}")) for story in made]


def stories(path: Path) -> list[list[Line]]:
    """Stories of one file. Lines count from 1 within a story; a question has tabs: text, answer,
    supporting lines."""
    told: list[list[Line]] = []
    for number, text in enumerate(read_text(path).splitlines(), 1):
        head, _, rest = text.partition(" ")
        fields = [field.strip() for field in rest.split("\t")]
        if (
            not head.isdecimal()
            or len(head) > LONGEST_NUMBER
            or len(fields) not in (1, 3)
            or not all(fields)
            or (head != "1" and not told)
        ):
            raise InputError(
                f"{path}, line {number}",
                "should read 'number statement' or 'number question TAB answer TAB lines'",
            )
        if head == "1":
            told.append([])
        if len(fields) == 1:
            told[-1].append(Line(int(head), fields[0]))
            continue
        support = fields[2].split()
        unknown = {*support} - {str(line.number) for line in told[-1] if line.answer is None}
        if unknown:
            raise InputError(
                f"{path}, line {number}",
                f"is supported by line {min(unknown)!r}, which is no statement before it",
            )
        told[-1].append(Line(int(head), fields[0], fields[1], tuple(map(int, support))))
    for i, story in enumerate(told, 1):
        if all(line.answer is None for line in story):
            raise InputError(str(path), f"story {i} asks nothing")
    return told


def conversation(lines: list[Line], max_questions: int, layout: Layout = "block") -> Story:
    """Turns of the lines of one story."""
    turns: list[Interaction] = []
    support: list[frozenset[int]] = []
    block: list[str] = []
    turn_of: dict[int, int] = {}
    said: dict[
        tuple[str, str], int
    ] = {}  # question and value -> the turn that last gave this answer to it
    texts = {line.number: line.text for line in lines}

    def tell() -> None:
        if block:
            turns.append(Interaction(" ".join(block), ACKNOWLEDGE, role="remember"))
            support.append(frozenset())
            block.clear()

    for line in lines:
        if line.answer is None:
            # Turns of a block are told once a question closes it.
            turn_of[line.number] = len(turns)
            block.append(line.text)
            if layout == "statement":
                tell()
            continue
        tell()
        values = [value.strip() for value in line.answer.split(",")]
        facts = []
        for value in dict.fromkeys(values):
            told_in = turn_of[
                max([n for n in line.support if contains_value(texts[n], value)] or line.support)
            ]
            # An answer that went wrong since it was given is older than the statement that made it
            # right again.
            facts.append(Fact(value, max(told_in, said.get((line.text, value), 0))))
            said[line.text, value] = len(turns)
        turns.append(Interaction(line.text, ", ".join(values), role="recall", facts=tuple(facts)))
        support.append(frozenset(turn_of[number] for number in line.support))
        if sum(turn.role == "recall" for turn in turns) == max_questions:
            break
    opening, *follow_ups = turns
    row = Row(
        opening.query,
        opening.answer,
        tuple(follow_ups),
        strategy="cumulative" if len(follow_ups) > 1 else "single",
    )
    return Story(row, tuple(support))


def reading_pairs(story: Story) -> list[Interaction]:
    """Questions beside the very block that answers them, as one query: what SFT learns to read
    before memory has to hold it.

    Only questions whose support all stands in the turn before; the others cannot be answered from
    it alone.
    """
    pairs = []
    for index, (before, turn) in enumerate(itertools.pairwise(story.row.turns), 1):
        if story.support[index] == {index - 1}:
            pairs.append(Interaction(f"{before.query} {turn.query}", turn.answer, role="act"))
    return pairs


def windows(story: Story) -> list[Row]:
    """The parts of a story that stand by themselves: from each later block of statements on, up to
    the first question that needs a statement before it. Short conversations in which to learn what
    long ones repeat."""
    parts = []
    for start, opening in enumerate(story.row.turns):
        # Of statements in turns of their own, the first after a question begins a part.
        if start == 0 or (opening.role, story.row.turns[start - 1].role) != ("remember", "recall"):
            continue
        kept: list[Interaction] = []
        for index, turn in enumerate(story.row.turns[start + 1 :], start + 1):
            if any(needed < start for needed in story.support[index]):
                break
            kept.append(
                replace(
                    turn,
                    facts=tuple(replace(fact, said_in=fact.said_in - start) for fact in turn.facts),
                )
            )
        while kept and not kept[-1].facts:
            kept.pop()
        if kept:
            strategy: Strategy = "cumulative" if len(kept) > 1 else "single"
            parts.append(
                Row(
                    opening.query,
                    opening.answer,
                    tuple(kept),
                    strategy=strategy,
                    source=story.row.source,
                )
            )
    return parts
