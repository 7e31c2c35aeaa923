"""Facts spread among turns of other talk: conversations of any length, of which only a few turns
matter (the idea of BABILong, Kuratov et al. 2024, arXiv 2406.10149, as conversations).

A story is a short conversation that tells, changes and asks: a bAbI story
(common/data/datasets/babi.py), or a generated one (synth.py). Its turns keep their order; other
talk fills the room between them. How much stands before each turn is drawn log-uniformly, so that
questions reach back over few turns and over many. The last turn asks.

Invariant: no turn of other talk says a value that a story asks for, so `Fact.said_in` and the
distance of a question mean what they mean everywhere.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from common.config.data import SynthData
from common.config.generation import LongContext
from common.data.datasets import babi
from common.data.datasets.dialogues import load_dialogues
from common.data.datasets.synth import generate
from common.data.datasets.world import kind_values, long_talk
from common.data.leftovers import Leftovers
from common.data.splits import conversation_hash, fraction
from common.episode import Fact, Interaction, Row
from common.failures import InputError
from common.seeding import derive
from common.text.values import contains_value, folded, place, value_words, words

HELD_OUT = 0.1
"""Share of the stories that is evaluated on where no file holds those."""
SAYS_VALUE = "turns of other talk that say a value asked for"
TOO_LONG = "turns of other talk with more words than max_words"
CHANGED = "facts that replaced an earlier value, which is kept as outdated"
CONTRADICTED = "stories whose answers contradict one another"
TOO_MANY_TURNS = "stories without a question in so few turns"
CUT = "stories cut to the questions that fit the turns"
_MOVED = re.compile(r"(\w+) [^.]*\bto the (\w+)\s*\.")
"""A statement of bAbI that a person is elsewhere now."""

Stories = Mapping[str, Sequence[Row]]
"""By split. `Row.source` is the file of a story and its number there."""


def long_contexts(settings: LongContext, seed: int, left: Leftovers) -> dict[str, list[Row]]:
    """Conversations by the name of their file: `train_16`, `eval_16`, …

    left: is told of what is left out, and of facts that changed. Raises InputError where a file is
    missing or wrong, and where nothing is left of what is asked for.
    """
    read = _babi(settings, left) if settings.facts else None
    values = _values(settings, read)
    talk = _talk(settings, values, left)
    counts = {"train": settings.train, "eval": settings.eval}
    wanted = {split: count for split, count in counts.items() if count}
    made: dict[str, list[Row]] = {}
    for turns in settings.turns:
        if read:
            stories = _fitting({split: read[split] for split in wanted}, turns, left)
        else:
            stories = _generated(settings, turns, seed)
        for split, count in wanted.items():
            if not stories[split]:
                raise InputError(
                    ", ".join(settings.facts), f"no story to {split} on is left for {turns} turns"
                )
            made[f"{split}_{turns}"] = [
                spread(
                    stories[split][number % len(stories[split])],
                    talk,
                    turns,
                    random.Random(derive(seed, "long_context", split, turns, number)),
                )
                for number in range(count)
            ]
    return made


def spread(
    story: Row, talk: Sequence[Sequence[Interaction]], turns: int, rng: random.Random
) -> Row:
    """A conversation of `turns` follow-ups in which the story's turns stand in their order, its
    last one last, among other talk. talk: dialogues, which are taken whole, one after another."""
    between = _gaps(len(story.turns), turns + 1 - len(story.turns), rng)
    other = _endless(talk, rng)
    spoken: list[Interaction] = []
    stands: list[int] = []
    for gap, turn in zip(between, story.turns, strict=True):
        spoken += [next(other) for _ in range(gap)]
        stands.append(len(spoken))
        facts = tuple(replace(fact, said_in=stands[fact.said_in]) for fact in turn.facts)
        spoken.append(replace(turn, facts=facts))
    opening, *follow_ups = spoken
    return Row(opening.query, opening.answer, tuple(follow_ups), source=story.source)


def _gaps(count: int, total: int, rng: random.Random) -> list[int]:
    """`count` numbers with the sum `total`: shares are log-uniform, from 1 to `total`."""
    weights = [math.exp(rng.uniform(0, math.log(total + 1))) for _ in range(count)]
    gaps = [int(total * weight / sum(weights)) for weight in weights]
    gaps[weights.index(max(weights))] += total - sum(gaps)
    return gaps


def _endless(talk: Sequence[Sequence[Interaction]], rng: random.Random) -> Iterator[Interaction]:
    """All talk in an order of its own, and again once it is over."""
    while True:
        for dialogue in rng.sample(talk, len(talk)):
            yield from dialogue


# --- other talk -----------------------------------------------------------------------------------


def _values(settings: LongContext, read: Stories | None) -> list[str]:
    """All that stories ask for or replace, where it was said literally: "yes" only follows."""
    if read is None:
        return [
            value
            for kind in range(settings.subjects)
            for value in kind_values(kind, settings.values)
        ]
    found = {
        value
        for stories in read.values()
        for row in stories
        for turn in row.turns
        for fact in turn.facts
        for value in (fact.value, *fact.outdated)
        if any(contains_value(told.query, value) for told in row.turns if told.role == "remember")
    }
    return sorted(found)


def _talk(settings: LongContext, values: Sequence[str], left: Leftovers) -> list[list[Interaction]]:
    """Dialogues without the turns that are too long or say one of the values."""
    needles = [value_words(value) for value in values]
    dialogues = [(each.where, each.pairs) for name in settings.talk
                 for each in load_dialogues(name, left)] or [
        ("generated talk", (pair,)) for pair in long_talk()
    ]  # fmt: skip
    kept = []
    for where, pairs in dialogues:
        turns = []
        for query, answer in pairs:
            texts = folded(query), folded(answer)
            if len(words(query)) + len(words(answer)) > settings.max_words:
                left.add(TOO_LONG, where)
            elif any(place(text, needle) for text in texts for needle in needles):
                left.add(SAYS_VALUE, where)
            else:
                turns.append(Interaction(query, answer, role="distract"))
        if turns:
            kept.append(turns)
    if not kept:
        raise InputError(
            ", ".join(settings.talk) or "talk",
            "no turn is left that is short enough and says no value that a story asks for",
        )
    return kept


# --- stories --------------------------------------------------------------------------------------


def _generated(settings: LongContext, turns: int, seed: int) -> Stories:
    world = SynthData(
        train=max(1, settings.train),
        eval=max(1, settings.eval),
        steps=(min(settings.story_turns, turns),),
        subjects=settings.subjects,
        values=settings.values,
        distractors=0.0,
    )
    drawn = generate(world, derive(seed, "long_context", turns))
    return {split: drawn[split] for split in ("train", "eval")}


def _babi(settings: LongContext, left: Leftovers) -> Stories:
    """Stories of files by split. None of `train` has the words of one that is held out."""
    told = _read(settings, settings.facts, left)
    if settings.eval_facts:
        held = _read(settings, settings.eval_facts, left)
    else:
        held = [row for row in told if fraction(conversation_hash(row)) < HELD_OUT]
    apart = set(map(conversation_hash, held))
    return {"train": [row for row in told if conversation_hash(row) not in apart], "eval": held}


def _read(settings: LongContext, files: Sequence[str], left: Leftovers) -> list[Row]:
    found = []
    for name in files:
        for number, lines in enumerate(babi.stories(Path(name)), 1):
            where = f"{name}, story {number}"
            row = with_outdated(
                babi.conversation(lines, settings.max_questions, settings.layout).row
            )
            if row is None:
                left.add(CONTRADICTED, where)
                continue
            changed = sum(bool(fact.outdated) for turn in row.turns for fact in turn.facts)
            if changed:
                left.add(CHANGED, where, changed)
            found.append(replace(row, source=where))
    return found


def with_outdated(row: Row) -> Row | None:
    """A bAbI story whose facts list the values that they replaced: earlier answers to the same
    question, and of a question for a person's place, the places where that person was before. None
    where an answer differs from an earlier one though nothing was said in between."""
    turns = [row.opening]
    answered: dict[str, list[str]] = {}
    asked_in: dict[str, int] = {}
    for turn in row.interactions:
        if len(turn.facts) == 1:
            (fact,) = turn.facts
            before = answered.setdefault(turn.query, [])
            between = turns[asked_in.get(turn.query, 0) :]
            if before and before[-1] != fact.value and all(said.facts for said in between):
                return None
            old = dict.fromkeys([*_places_before(row, turn, fact), *before])
            outdated = tuple(value for value in old if value != fact.value)
            before.append(fact.value)
            asked_in[turn.query] = len(turns)
            turn = replace(turn, facts=(replace(fact, outdated=outdated),))
        turns.append(turn)
    return replace(row, interactions=tuple(turns[1:]))


def _places_before(row: Row, turn: Interaction, fact: Fact) -> list[str]:
    """Where the person was whom a question names, oldest place first, up to the turn that said the
    value; empty where it names none."""
    told = [
        found
        for said in row.turns[: fact.said_in + 1]
        if said.role == "remember"
        for found in _MOVED.findall(said.query)
        if contains_value(turn.query, found[0])
    ]
    return [where for _, where in told] if told and told[-1][1] == fact.value else []


def _fitting(read: Stories, turns: int, left: Leftovers) -> Stories:
    """The stories as far as they fit a number of follow-ups."""
    kept: dict[str, list[Row]] = {split: [] for split in read}
    for split, stories in read.items():
        for row in stories:
            follow_ups = list(row.interactions[:turns])
            while follow_ups and not follow_ups[-1].facts:
                follow_ups.pop()
            if not follow_ups:
                left.add(f"{TOO_MANY_TURNS} ({turns})", row.source)
                continue
            if len(follow_ups) < len(row.interactions):
                left.add(f"{CUT} ({turns})", row.source)
            kept[split].append(replace(row, interactions=tuple(follow_ups)))
    return kept
