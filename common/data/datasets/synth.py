"""Generated conversations with facts: told, changed, asked for, and padded with small talk.

A small world (`world.py`) that a small model can learn in minutes, and that only memory can answer.
`Fact.said_in` is the last turn that said the value, and an answer that repeats it says it again:
the distance of a question is turns since last said. Final questions aim at the distance that the
split has asked least, which keeps distances even, and about half of all questions ask for a fact
that changed. `PATTERNS` are splits of their own that test change alone; two of them never occur
elsewhere.

Everything derives from one seed. A conversation belongs to the split that the hash of its words
names, whatever the sizes of the splits, so no two splits can share one; held-out splits hold each
conversation once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from common.config.data import SynthData
from common.data.corpus import Corpus, corpus_of
from common.data.datasets.world import ASK_ALL, KINDS, SMALL_TALK, kind_values
from common.data.splits import conversation_hash, fraction
from common.episode import Fact, Interaction, Row, Strategy
from common.failures import InputError
from common.seeding import derive

ACKNOWLEDGE = "okay"
ASK_IN_THE_MIDDLE = 0.4
"""Share of the middle turns, neither small talk nor changes, that ask; the rest tell something
new."""
PREFER = 0.9
"""Probability that a question asks for a fact of the sort (changed, or not) that was asked less
than its share, where both sorts are there."""
CHANGED_AGAIN = 0.5
"""Probability that the last question, where it asks for a changed fact, asks for one that changed
twice, where there is room for it."""
TRIES = 2000
"""Draws for one conversation before the world counts as too small for the splits asked for."""

SPLITS = {"train": 0.8, "eval": 0.9, "test": 1.0}
"""Upper bound of each split in [0, 1), the fraction that the hash of a conversation gives."""

PATTERNS: dict[str, tuple[str, ...]] = {
    "changed_asked_at_once": ("tell", "change", "ask"),
    "changed_then_small_talk": ("tell", "change", "chat", "ask"),
    "changed_then_three_small_talk": ("tell", "change", "chat", "chat", "chat", "ask"),
    "changed_twice": ("tell", "change", "change", "ask"),
    "changed_then_another_told": ("tell", "change", "tell another", "ask"),
}
"""The events of the fact that the last question asks for, by the name of their split. Up to two
other turns stand before it."""
UNSEEN = ("changed_then_three_small_talk", "changed_then_another_told")
"""Patterns that no conversation of `train`, `eval` and `test` contains, as far as the world is
large enough to say something else: after a change directly follow three turns of small talk, or
something new that is told."""


def synth_corpus(data: SynthData, seed: int) -> Corpus:
    """The generated conversations as a run takes them."""
    splits = generate(data, seed)
    corpus = corpus_of(splits["train"], splits["eval"], splits["test"])
    return replace(corpus, patterns={name: splits[name] for name in PATTERNS if name in splits})


def generate(config: SynthData, seed: int) -> dict[str, list[Row]]:
    """Conversations by split: `config.train`, `config.eval` and, for the final figure, as many
    `test` as `eval`; and `config.patterns` of each of `PATTERNS`.

    Raises InputError where the world that the settings allow is too small to fill the splits.
    """
    counts = {"train": config.train, "eval": config.eval, "test": config.eval}
    splits = {split: list(_split(config, split, count, seed)) for split, count in counts.items()}
    if config.patterns:
        if config.subjects < 2:
            raise InputError(
                "data.subjects", "is 1, and one of the patterns tells of another thing: 2 at least"
            )
        splits |= {name: pattern_rows(config, name, config.patterns, seed) for name in PATTERNS}
    return splits


def pattern_rows(
    config: SynthData, name: str, count: int, seed: int, split: str = "test"
) -> list[Row]:
    """`count` different conversations of one of PATTERNS, none of which stands in another split's
    part of the world than `split`'s."""

    def draw(index: int, attempt: int) -> Row:
        rng = random.Random(derive(seed, "synth", name, index, attempt))
        return _Conversation(config, rng, _Asked(0)).follow(PATTERNS[name], max(config.steps) + 1)

    drawn: dict[str, Row] = {}
    for index in range(count):
        row = _drawn(draw, index, split, drawn)
        if row is None:
            raise InputError(
                "data.patterns", f"{name} has {len(drawn)} different conversations, not {count}"
            )
        drawn[conversation_hash(row)] = row
    return list(drawn.values())


def _split(config: SynthData, split: str, count: int, seed: int) -> Iterator[Row]:
    asked = _Asked(config.changed_questions)
    known: dict[str, Row] = {}
    shapes = _shapes(config)
    for index in range(count):
        row = None
        while row is None:
            if not shapes:
                raise InputError(
                    "data",
                    f"has {index} different {split} conversations, not {count}: allow more "
                    "subjects, values or steps",
                )
            strategy, steps = shapes[index % len(shapes)]

            def draw(
                index: int, attempt: int, strategy: Strategy = strategy, steps: int = steps
            ) -> Row:
                rng = random.Random(derive(seed, "synth", split, index, attempt))
                return _Conversation(config, rng, asked).talk(strategy, steps)

            row = _drawn(draw, index, split, {} if split == "train" else known)
            if row is None:
                # All conversations of this shape are in: the others fill the split.
                shapes = [shape for shape in shapes if shape != (strategy, steps)]
        known[conversation_hash(row)] = row
        asked.add(row)
        yield row


def _shapes(config: SynthData) -> list[tuple[Strategy, int]]:
    """Strategies and lengths in the order in which conversations take them, evenly."""
    shapes: list[tuple[Strategy, int]] = []
    for steps in config.steps:
        shapes += [
            (strategy, 1 if strategy == "single" else steps) for strategy in config.strategies
        ]
    return shapes


def _drawn(
    draw: Callable[[int, int], Row], index: int, split: str, known: dict[str, Row]
) -> Row | None:
    """The first conversation of a split that is not known yet; None after TRIES."""
    for attempt in range(TRIES):
        row = draw(index, attempt)
        digest = conversation_hash(row)
        if digest not in known and split == next(
            name for name, bound in SPLITS.items() if fraction(digest) < bound
        ):
            return row
    return None


@dataclass
class _Asked:
    """Counts of the facts that the questions of a split asked for so far."""

    share: float
    """The share of questions that are to ask for a changed fact."""
    distances: Counter[tuple[int, int]] = field(default_factory=Counter)
    """By follow-ups of the conversation and distance."""
    changed: Counter[Strategy] = field(default_factory=Counter)
    all: Counter[Strategy] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        for turn, said in enumerate(row.turns):
            self.distances.update(
                (len(row.interactions), turn - fact.said_in) for fact in said.facts
            )
            self.changed[row.strategy] += sum(bool(fact.outdated) for fact in said.facts)
            self.all[row.strategy] += len(said.facts)

    def changed_next(self, strategy: Strategy, rng: random.Random) -> bool:
        """Whether the next question of a strategy should ask for a changed fact."""
        if self.share in (0, 1):
            return self.share == 1
        behind = self.changed[strategy] <= self.share * self.all[strategy]
        return rng.random() < (PREFER if behind else 1 - PREFER)

    def least(self, steps: int, rng: random.Random) -> int:
        """The distance that conversations of `steps` follow-ups asked least."""
        asked = {distance: self.distances[steps, distance] for distance in range(1, steps + 1)}
        return rng.choice(
            [distance for distance in asked if asked[distance] == min(asked.values())]
        )


@dataclass
class _Thing:
    """Statements of a conversation about one kind of thing."""

    value: str
    said_in: int
    replaced: list[str] = field(default_factory=list)


class _Conversation:
    """One conversation being made, turn by turn."""

    def __init__(self, config: SynthData, rng: random.Random, asked: _Asked):
        self.config, self.rng, self.asked = config, rng, asked
        self.things: dict[int, _Thing] = {}
        self.turns: list[Interaction] = []
        self.steps = 0
        """Follow-ups that the conversation will have."""
        self.target: int | None = None
        """The kind that the last question asks for. Nothing else asks for it or changes it."""
        self.to_change_again: int | None = None
        """The kind that is to become the target by a second change. Nothing asks for it before."""
        self.small_talk = rng.sample(SMALL_TALK, len(SMALL_TALK))
        self.chats_since_change: int | None = None
        """Small talk that directly follows a change; None where other turns came between."""

    # --- whole conversations ----------------------------------------------------------------------

    def talk(self, strategy: Strategy, steps: int) -> Row:
        """A conversation of `steps` follow-ups. The last one asks for what was said `distance`
        turns before, which is the distance asked least so far, and in `long_term` for what the
        opening is about."""
        self.steps = steps
        if strategy == "cumulative" and self.config.final_question == "all":
            return self._talk_of_all(steps)
        last_said, change = self._aim(strategy, steps)
        first_change = self._first_change(last_said) if change else None
        opened = self._tell()
        if last_said == 0 or strategy == "long_term":
            self.target = opened
        for turn in range(1, steps):
            if turn == last_said:
                self._say_target(change)
            elif turn == first_change and self._changeable():
                self.to_change_again = self.rng.choice(self._changeable())
                self._change(self.to_change_again)
            else:
                # What is new must not be told directly after a change.
                self._say_something(strategy, may_change=change or turn != last_said - 1)
        assert self.target is not None
        self._ask(self.target)
        return self._row(strategy)

    def _talk_of_all(self, steps: int) -> Row:
        """A cumulative conversation whose last follow-up asks for everything that was told."""
        self._tell()
        for _ in range(1, steps):
            self._say_something("cumulative", may_change=True)
        facts = tuple(self._asked(kind) for kind in self.things)
        answer = ", ".join(
            KINDS[kind].answer.format(v=thing.value) for kind, thing in self.things.items()
        )
        self.turns.append(Interaction(self.rng.choice(ASK_ALL), answer, role="recall", facts=facts))
        return self._row("cumulative")

    def follow(self, pattern: tuple[str, ...], most: int) -> Row:
        """A conversation that ends with a pattern. Up to two turns stand before it, `most` in
        all."""
        others = pattern.count("tell another")
        for turn in range(self.rng.randint(0, max(0, min(2, most - len(pattern))))):
            tell = len(self._untold()) > others + 1 and (turn == 0 or self.rng.random() < 0.5)
            if tell:
                self._tell()
            elif turn > 0:
                self._chat()
        target = self._tell()
        for event in pattern[1:]:
            match event:
                case "change":
                    self._change(target)
                case "chat":
                    self._chat()
                case "tell another":
                    self._tell()
                case "ask":
                    self._ask(target)
        return self._row("cumulative")

    def _row(self, strategy: Strategy) -> Row:
        opening, *follow_ups = self.turns
        return Row(opening.query, opening.answer, tuple(follow_ups), strategy=strategy)

    def _aim(self, strategy: Strategy, steps: int) -> tuple[int, bool]:
        """The turn that says the target's value, and whether it does so by changing it: not the
        opening."""
        change = steps > 1 and self.asked.changed_next(strategy, self.rng)
        if strategy == "long_term":
            return (self.rng.randrange(1, steps) if change else 0), change
        distance = self.asked.least(steps, self.rng) if strategy == "cumulative" else steps
        return steps - distance, change and distance < steps

    def _first_change(self, last_said: int) -> int | None:
        """The turn that changes something which may change again in `last_said`."""
        if last_said < 2 or self.rng.random() >= CHANGED_AGAIN:
            return None
        return self.rng.randrange(1, last_said)

    # --- turns ------------------------------------------------------------------------------------

    def _say_target(self, change: bool) -> None:
        if self.target is None:
            if not change and self._untold():
                self.target = self._tell()
                return
            changeable = self._changeable() or list(self.things)
            again = [kind for kind in changeable if self.things[kind].replaced]
            self.target = self.rng.choice(again or changeable)
        self._change(self.target)

    def _say_something(self, strategy: Strategy, may_change: bool) -> None:
        """A turn of the middle."""
        # Both a third turn of small talk and something new after a change belong to UNSEEN.
        chat_fits = self.chats_since_change is None or self.chats_since_change < 2
        untold = self._untold() if self.chats_since_change != 0 else []
        changeable = self._changeable() if may_change else []
        free = [kind for kind in self.things if kind not in (self.target, self.to_change_again)]
        if chat_fits and self.rng.random() < self.config.distractors:
            self._chat()
        elif changeable and self.rng.random() < self.config.change_probability:
            self._change(self.rng.choice(changeable))
        elif (
            strategy == "cumulative"
            and free
            and (not untold or self.rng.random() < ASK_IN_THE_MIDDLE)
        ):
            self._ask(self._asked_next(free))
        elif untold:
            self._tell()
        elif changeable and not chat_fits:
            self._change(self.rng.choice(changeable))
        else:
            self._chat()

    def _asked_next(self, kinds: list[int]) -> int:
        """One of `kinds` that changed or did not, at the distance asked least."""
        as_changed = self.asked.changed_next("cumulative", self.rng)
        fitting = [
            kind for kind in kinds if bool(self.things[kind].replaced) == as_changed
        ] or kinds
        times = {
            kind: self.asked.distances[self.steps, len(self.turns) - self.things[kind].said_in]
            for kind in fitting
        }
        return self.rng.choice([kind for kind in fitting if times[kind] == min(times.values())])

    def _untold(self) -> list[int]:
        return [kind for kind in range(self.config.subjects) if kind not in self.things]

    def _changeable(self) -> list[int]:
        """Kinds told before, without the target."""
        return [kind for kind in self.things if kind != self.target]

    def _tell(self) -> int:
        kind = self.rng.choice(self._untold())
        value = self.rng.choice(kind_values(kind, self.config.values))
        self.things[kind] = _Thing(value, len(self.turns))
        self._add(self.rng.choice(KINDS[kind].tell).format(v=value), ACKNOWLEDGE, None)
        return kind

    def _change(self, kind: int) -> None:
        thing, values = self.things[kind], kind_values(kind, self.config.values)
        before = {thing.value, *thing.replaced}
        # Where every value was there before, one comes again.
        new = [value for value in values if value not in before]
        value = self.rng.choice(new or [value for value in values if value != thing.value])
        replaced = [old for old in (*thing.replaced, thing.value) if old != value]
        self.things[kind] = _Thing(value, len(self.turns), replaced)
        self._add(self.rng.choice(KINDS[kind].change).format(v=value), ACKNOWLEDGE, 0)

    def _ask(self, kind: int) -> None:
        fact = self._asked(kind)
        answer = KINDS[kind].answer.format(v=fact.value)
        self.turns.append(
            Interaction(self.rng.choice(KINDS[kind].ask), answer, role="recall", facts=(fact,))
        )
        self.chats_since_change = None

    def _asked(self, kind: int) -> Fact:
        """The fact that the next turn asks for, which its answer says again."""
        thing = self.things[kind]
        fact = Fact(thing.value, thing.said_in, tuple(thing.replaced))
        thing.said_in = len(self.turns)
        return fact

    def _add(self, query: str, answer: str, chats_since_change: int | None) -> None:
        self.turns.append(Interaction(query, answer, role="remember"))
        self.chats_since_change = chats_since_change

    def _chat(self) -> None:
        # Longer conversations than there is small talk begin it again.
        query, answer = self.small_talk.pop(0)
        self.small_talk.append((query, answer))
        self.turns.append(Interaction(query, answer, role="distract"))
        if self.chats_since_change is not None:
            self.chats_since_change += 1
