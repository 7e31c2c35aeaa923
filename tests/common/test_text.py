from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from common.text import contains_value, contains_words, place, value_words, words


def test_words_of_a_text() -> None:
    assert words("Meet me at 11:30, twenty-one of us; it's 4.5 km...") == [
        "meet",
        "me",
        "at",
        "11:30",
        "twenty-one",
        "of",
        "us",
        "it's",
        "4.5",
        "km",
    ]


@pytest.mark.parametrize(
    ("text", "value", "stands"),
    [
        ("it is Rex.", "rex", True),
        ("Rexford", "Rex", False),
        ("at 12:30", "12", False),
        ("at 30:12", "12", False),
        ("in New, York", "new york", True),
        ("in New-York", "new york", False),
        ("new new york", "new york", True),
        ("York", "", False),
    ],
)
def test_a_value_stands_as_whole_words(text: str, value: str, stands: bool) -> None:
    assert contains_value(text, value) == stands


def places(lowered: str, needle: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """All places of a value, none within another."""
    found = place(lowered, needle) if needle else None
    while found is not None:
        yield found
        found = place(lowered, needle, found[1])


def test_places_are_where_all_words_of_a_text_have_those_of_a_value() -> None:
    draw = random.Random(1)
    pieces = ["a", "b", "ab", "12", "12:30", "é", "_", " ", " ", " ", ".", "-", "'", ":", ",", "..", "A"]
    found = 0
    for _ in range(20000):
        text = "".join(draw.choices(pieces, k=draw.randrange(1, 12))).lower()
        value = "".join(draw.choices(pieces, k=draw.randrange(1, 4)))
        own, needle = words(text), value_words(value)
        here = list(places(text, needle))
        assert bool(here) == contains_words(own, list(needle)), (text, value)
        assert all(words(text[start:end]) == list(needle) for start, end in here)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(here))
        # Taken out, nothing of the value is left.
        kept, end = [], 0
        for start, after in here:
            kept.append(text[end:start])
            end = after
        assert not list(places(" X ".join([*kept, text[end:]]), needle))
        found += bool(here)
    assert found > 1000
