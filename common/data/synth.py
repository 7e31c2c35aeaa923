"""Generated conversations with facts: a small world that a small model can learn in minutes, and that only memory can answer.

Each kind of thing ("my dog") has values of its own, no value belongs to two kinds, and no template holds a value, so an
answer's value comes from memory or from luck. A conversation is told, changed, asked and padded with small talk.
`Fact.said_in` is the last turn that said the value, and an answer that repeats it says it again: the distance of a question
is turns since last said. Final questions aim at the distance that the split has asked least, which keeps distances even.

Everything derives from one seed. A conversation belongs to the split that the hash of its words names, so no two splits can
share one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from common.config.schema import SynthData
from common.data.splits import conversation_hash, fraction
from common.episode import Fact, Interaction, Row, Strategy
from common.failures import InputError
from common.seeding import derive

ACKNOWLEDGE = "okay"
ASK_IN_THE_MIDDLE = 0.4
"""Share of the middle turns, neither small talk nor changes, that ask; the rest tell something new."""
TRIES = 2000
"""Draws for one conversation before the world counts as too small for the splits asked for."""

SPLITS = ("train", "eval", "test")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of thing. Templates hold {v}, the value; queries have at most 9 words, answers at most 6."""

    tell: tuple[str, ...]
    change: tuple[str, ...]
    ask: tuple[str, ...]
    answer: str
    values: tuple[str, ...]


def _called(noun: str, values: str) -> Kind:
    return Kind(
        tell=(f"my {noun} is called {{v}}", f"I have a {noun} called {{v}}"),
        change=(f"my {noun} is now called {{v}}",),
        ask=(f"what is my {noun} called?", f"tell me what my {noun} is called"),
        answer=f"your {noun} is called {{v}}",
        values=tuple(values.split()),
    )


def _being(noun: str, values: str) -> Kind:
    return Kind(
        tell=(f"my {noun} is {{v}}", f"{{v}} is my {noun}"),
        change=(f"my {noun} is now {{v}}",),
        ask=(f"what is my {noun}?", f"tell me what my {noun} is"),
        answer=f"your {noun} is {{v}}",
        values=tuple(values.split()),
    )


def _doing(verb: str, question: str, values: str) -> Kind:
    return Kind(
        tell=(f"I {verb} {{v}}", f"you know, I {verb} {{v}}"),
        change=(f"now I {verb} {{v}}",),
        ask=(question, f"tell me {question.rstrip('?').replace(' do I ', ' I ')}"),
        answer=f"you {verb} {{v}}",
        values=tuple(values.split()),
    )


KINDS: tuple[Kind, ...] = (
    _called("dog", "Rex Max Bella Buddy Rocky Daisy Luna Charlie Bruno Toby Coco Rusty"),
    _doing("live in", "where do I live?", "Paris Rome London Berlin Madrid Vienna Oslo Dublin Lisbon Prague Warsaw Athens"),
    _being("job", "baker teacher doctor farmer driver painter singer writer lawyer nurse pilot cook"),
    _being("colour", "red blue green yellow purple black white pink brown grey gold silver"),
    _doing("love to eat", "what do I love to eat?", "pizza pasta soup rice bread cheese salad fish cake curry noodles steak"),
    _called("friend", "Anna Peter Maria Tom Julia David Emma Paul Laura Mark Nina Oscar"),
    _doing("drink", "what do I drink?", "tea coffee milk water juice cola lemonade cocoa cider wine beer lassi"),
    _being("car", "Ford Fiat Volvo Honda Skoda Toyota Mazda Tesla Kia Jeep Nissan Peugeot"),
    _doing("play the", "what do I play?", "piano guitar violin flute drums trumpet cello harp organ clarinet banjo saxophone"),
    _called("cat", "Misty Tiger Felix Simba Smokey Ginger Oreo Whiskers Mittens Salem Pepper Shadow"),
    _being("sport", "tennis football golf chess hockey rugby boxing karate rowing skiing swimming cycling"),
    _called("sister", "Alice Clara Sofia Helen Ruth Grace Eva Lucy Diana Irene Rosa Vera"),
    _being("birth month", "January February March April May June July August September October November December"),
    _called("brother", "Jack Henry Simon Victor Leon Adam Hugo Ivan Karl Martin Robert Frank"),
    _being("fruit", "apple banana cherry grape lemon mango melon peach pear plum kiwi fig"),
    _being("animal", "lion elephant giraffe zebra monkey panda wolf bear fox eagle owl dolphin"),
    _doing("come from", "where do I come from?", "Spain France Italy Poland Norway Sweden Greece Egypt Japan Brazil Canada India"),
    _being("number", "two three four five six seven eight nine ten eleven twelve thirteen"),
    _being("flower", "rose tulip lily violet orchid poppy iris jasmine lotus sunflower lavender peony"),
    _doing("speak", "what do I speak?", "French German Italian Polish Spanish Greek Dutch Danish Czech Turkish Latin Korean"),
    _being("tree", "oak pine birch maple willow elm ash cedar palm beech spruce alder"),
    _being("subject", "maths history music art physics biology geography chemistry drama logic economics statistics"),
    _called("boat", "Aurora Neptune Phoenix Odyssey Liberty Venture Spirit Star Dream Wave Comet Horizon"),
    _being("stone", "ruby emerald diamond pearl sapphire topaz opal amber jade garnet quartz onyx"),
)

SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("how are you?", "fine, thanks"),
    ("hello there", "hello"),
    ("good morning", "good morning to you"),
    ("thank you", "you are welcome"),
    ("it is raining again", "stay dry"),
    ("tell me a joke", "maybe later"),
    ("I am so tired", "get some rest"),
    ("see you soon", "bye for now"),
    ("that is nice", "glad to hear it"),
    ("the bus was late again", "how annoying"),
    ("I slept very well", "good to hear"),
    ("what a lovely evening", "indeed"),
    ("can you hear me?", "yes, I can"),
    ("let us go on", "sure"),
    ("is it late?", "not yet"),
    ("I am bored", "go for a walk"),
)


def kind_values(kind: int, count: int) -> tuple[str, ...]:
    """The first `count` values of a kind: real words first, then made-up names of four letters that no other kind has."""
    written = KINDS[kind].values[:count]
    return written + tuple(_made_up(kind * 48 + i) for i in range(len(written), count))


def _made_up(number: int) -> str:
    """A pronounceable word for 0 <= number < 4900, different for each: consonant, vowel, consonant, vowel."""
    consonants, vowels = "bdfgjklmnprtvz", "aeiou"
    scattered = number * 2777 % 4900  # 2777 and 4900 have no common divisor: neighbours look unlike, none coincide.
    first, rest = divmod(scattered, 350)
    second, rest = divmod(rest, 70)
    third, fourth = divmod(rest, 5)
    return (consonants[first] + vowels[second] + consonants[third] + vowels[fourth]).capitalize()


def generate(config: SynthData, seed: int) -> dict[str, list[Row]]:
    """Conversations by split: `config.train`, `config.eval` and, for the final figure, as many `test` as `eval`.

    Raises InputError where the world that the settings allow is too small to fill the splits.
    """
    counts = {"train": config.train, "eval": config.eval, "test": config.eval}
    return {split: list(_split(config, split, counts, seed)) for split in SPLITS}


def _split(config: SynthData, split: str, counts: dict[str, int], seed: int) -> Iterator[Row]:
    asked: Counter[tuple[int, int]] = Counter()
    bounds = _split_bounds(counts)
    for index in range(counts[split]):
        strategy = config.strategies[index % len(config.strategies)]
        steps = 1 if strategy == "single" else config.steps[index // len(config.strategies) % len(config.steps)]
        for attempt in range(TRIES):
            row = _Conversation(config, strategy, steps, random.Random(derive(seed, "synth", split, index, attempt)), asked).row()
            if split == _split_of(row, bounds):
                break
        else:
            raise InputError("data", f"no new {split} conversation {index} in {TRIES} draws: allow more subjects, values or steps")
        asked.update((steps, turn - fact.said_in) for turn, interaction in enumerate(row.turns) for fact in interaction.facts)
        yield row


def _split_bounds(counts: dict[str, int]) -> list[tuple[float, str]]:
    """Upper bounds of each split in [0, 1); the smaller splits get at least a tenth each, so that they fill in few draws."""
    total = sum(counts.values())
    shares = {split: max(counts[split] / total, 0.1) for split in SPLITS}
    bounds, reached = [], 0.0
    for split in SPLITS:
        reached += shares[split] / sum(shares.values())
        bounds.append((reached, split))
    return bounds


def _split_of(row: Row, bounds: list[tuple[float, str]]) -> str:
    place = fraction(conversation_hash(row))
    return next((split for bound, split in bounds if place < bound), bounds[-1][1])


class _Conversation:
    """One conversation being made. Its last turn asks `target`, which is said at turn steps - distance and left alone after that."""

    def __init__(self, config: SynthData, strategy: Strategy, steps: int, rng: random.Random, asked: Counter[tuple[int, int]]):
        self.config, self.strategy, self.steps, self.rng = config, strategy, steps, rng
        self.values: dict[int, str] = {}  # kind -> newest value
        self.said_in: dict[int, int] = {}  # kind -> turn that last said it
        self.target: int | None = None
        self.small_talk = rng.sample(SMALL_TALK, len(SMALL_TALK))
        if strategy == "cumulative":
            least = min(asked[steps, distance] for distance in range(1, steps + 1))
            distance = rng.choice([d for d in range(1, steps + 1) if asked[steps, d] == least])
        else:
            distance = steps
        self.target_turn = steps - distance

    def row(self) -> Row:
        opening, *follow_ups = [self._turn(turn) for turn in range(self.steps + 1)]
        return Row(opening.query, opening.answer, tuple(follow_ups), strategy=self.strategy)

    def _turn(self, turn: int) -> Interaction:
        if turn == self.steps:
            assert self.target is not None
            return self._ask(turn, self.target)
        if turn == self.target_turn:
            made = self._tell(turn) if self._untold() else self._change(turn)
            self.target = next(kind for kind, said in self.said_in.items() if said == turn)
            return made
        if turn == 0:
            return self._tell(turn)
        if self.rng.random() < self.config.distractors:
            return self._chat()
        if self._free() and self.rng.random() < self.config.change_probability:
            return self._change(turn)
        may_ask = self.strategy == "cumulative" and bool(self._free())
        if may_ask and (not self._untold() or self.rng.random() < ASK_IN_THE_MIDDLE):
            return self._ask(turn, self.rng.choice(self._free()))
        return self._tell(turn) if self._untold() else self._chat()

    def _untold(self) -> list[int]:
        return [kind for kind in range(self.config.subjects) if kind not in self.values]

    def _free(self) -> list[int]:
        """Kinds told before that may be asked or changed without moving the target of the last question."""
        return [kind for kind in self.values if kind != self.target]

    def _tell(self, turn: int) -> Interaction:
        kind = self.rng.choice(self._untold())
        return self._say(turn, kind, KINDS[kind].tell, kind_values(kind, self.config.values))

    def _change(self, turn: int) -> Interaction:
        kind = self.rng.choice(self._free())
        others = tuple(value for value in kind_values(kind, self.config.values) if value != self.values[kind])
        return self._say(turn, kind, KINDS[kind].change, others)

    def _say(self, turn: int, kind: int, templates: tuple[str, ...], values: tuple[str, ...]) -> Interaction:
        self.values[kind], self.said_in[kind] = self.rng.choice(values), turn
        return Interaction(self.rng.choice(templates).format(v=self.values[kind]), ACKNOWLEDGE, role="remember")

    def _ask(self, turn: int, kind: int) -> Interaction:
        fact = Fact(self.values[kind], self.said_in[kind])
        self.said_in[kind] = turn
        return Interaction(self.rng.choice(KINDS[kind].ask), KINDS[kind].answer.format(v=fact.value), role="recall", facts=(fact,))

    def _chat(self) -> Interaction:
        # Longer conversations than there is small talk begin it again.
        query, answer = self.small_talk.pop(0)
        self.small_talk.append((query, answer))
        return Interaction(query, answer, role="distract")
