"""The small world of generated conversations: kinds of things, their values, and small talk.

Each kind of thing ("my dog") has values of its own. No value belongs to two kinds and no template
holds a value, so an answer's value comes from memory or from luck.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of thing. Templates hold {v}, the value; queries have at most 9 words, answers at
    most 6."""

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


ASK_ALL = ("what do you know about me?", "tell me all that you know about me")

KINDS: tuple[Kind, ...] = (
    _called("dog", "Rex Max Bella Buddy Rocky Daisy Luna Charlie Bruno Toby Coco Rusty"),
    _doing(
        "live in",
        "where do I live?",
        "Paris Rome London Berlin Madrid Vienna Oslo Dublin Lisbon Prague Warsaw Athens",
    ),
    _being(
        "job", "baker teacher doctor farmer driver painter singer writer lawyer nurse pilot cook"
    ),
    _being("colour", "red blue green yellow purple black white pink brown grey gold silver"),
    _doing(
        "love to eat",
        "what do I love to eat?",
        "pizza pasta soup rice bread cheese salad fish cake curry noodles steak",
    ),
    _called("friend", "Anna Peter Maria Tom Julia David Emma Paul Laura Mark Nina Oscar"),
    _doing(
        "drink",
        "what do I drink?",
        "tea coffee milk water juice cola lemonade cocoa cider wine beer lassi",
    ),
    _being("car", "Ford Fiat Volvo Honda Skoda Toyota Mazda Tesla Kia Jeep Nissan Peugeot"),
    _doing(
        "play the",
        "what do I play?",
        "piano guitar violin flute drums trumpet cello harp organ clarinet banjo saxophone",
    ),
    _called(
        "cat", "Misty Tiger Felix Simba Smokey Ginger Oreo Whiskers Mittens Salem Pepper Shadow"
    ),
    _being(
        "sport",
        "tennis football golf chess hockey rugby boxing karate rowing skiing swimming cycling",
    ),
    _called("sister", "Alice Clara Sofia Helen Ruth Grace Eva Lucy Diana Irene Rosa Vera"),
    _being(
        "birth month",
        "January February March April May June July August September October November December",
    ),
    _called("brother", "Jack Henry Simon Victor Leon Adam Hugo Ivan Karl Martin Robert Frank"),
    _being("fruit", "apple banana cherry grape lemon mango melon peach pear plum kiwi fig"),
    _being("animal", "lion elephant giraffe zebra monkey panda wolf bear fox eagle owl dolphin"),
    _doing(
        "come from",
        "where do I come from?",
        "Spain France Italy Poland Norway Sweden Greece Egypt Japan Brazil Canada India",
    ),
    _being("number", "two three four five six seven eight nine ten eleven twelve thirteen"),
    _being(
        "flower", "rose tulip lily violet orchid poppy iris jasmine lotus sunflower lavender peony"
    ),
    _doing(
        "speak",
        "what do I speak?",
        "French German Italian Polish Spanish Greek Dutch Danish Czech Turkish Latin Korean",
    ),
    _being("tree", "oak pine birch maple willow elm ash cedar palm beech spruce alder"),
    _being(
        "subject",
        "maths history music art physics biology geography chemistry drama logic economics "
        "statistics",
    ),
    _called(
        "boat",
        "Aurora Neptune Phoenix Odyssey Liberty Venture Spirit Star Dream Wave Comet Horizon",
    ),
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

EVENTS: tuple[tuple[str, str], ...] = (
    ("the bus was late", "how annoying"),
    ("the lift was broken", "oh dear"),
    ("I met a neighbour", "that is nice"),
    ("I lost my umbrella", "what a pity"),
    ("I went for a walk", "good for you"),
    ("it rained a lot", "I hope you stayed dry"),
    ("I read the paper", "any news?"),
    ("I overslept", "it happens"),
    ("I heard a strange noise", "what was it?"),
    ("I tidied up", "well done"),
    ("somebody called by mistake", "never mind"),
    ("I missed the train", "that is bad luck"),
    ("I watched the clouds", "how peaceful"),
    ("the lights went out", "were you scared?"),
    ("I wrote a long letter", "how kind of you"),
    ("I forgot my keys", "did you find them?"),
)
OCCASIONS = (
    "today", "yesterday", "this morning", "last night", "at noon", "on the way home",
    "after work", "before breakfast", "at the weekend", "on Sunday", "on Monday", "last week",
)  # fmt: skip
"""Small talk of long conversations: each event at each occasion."""


def long_talk() -> list[tuple[str, str]]:
    """(query, answer) of all small talk that there is."""
    happened = [(f"{said} {when}", reply) for said, reply in EVENTS for when in OCCASIONS]
    return [*SMALL_TALK, *happened]


def kind_values(kind: int, count: int) -> tuple[str, ...]:
    """The first `count` values of a kind: real words first, then made-up names of four letters that
    no other kind has."""
    written = KINDS[kind].values[:count]
    return written + tuple(made_up(kind * 48 + i) for i in range(len(written), count))


def made_up(number: int) -> str:
    """A pronounceable word for 0 <= number < 4900, different for each: consonant, vowel, consonant,
    vowel."""
    consonants, vowels = "bdfgjklmnprtvz", "aeiou"
    scattered = (
        number * 2777 % 4900
    )  # 2777 and 4900 have no common divisor: neighbours look unlike, none coincide.
    first, rest = divmod(scattered, 350)
    second, rest = divmod(rest, 70)
    third, fourth = divmod(rest, 5)
    return (consonants[first] + vowels[second] + consonants[third] + vowels[fourth]).capitalize()
