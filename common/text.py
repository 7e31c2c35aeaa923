"""Words in text: what counts as a word, and whether a value stands in an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

_WORD = re.compile(r"\w+(?:['’.:-]\w+)*")
_JOINING = frozenset("'’.:-")


def words(text: str) -> list[str]:
    """Lower-cased words; times, hyphenated words and decimals (11:30, twenty-one, 4.5) stay whole."""
    return _WORD.findall(text.lower())


@lru_cache(maxsize=8192)
def value_words(value: str) -> tuple[str, ...]:
    """`words` of a value. Values come again and again, texts do not."""
    return tuple(words(value))


def contains_value(text: str, value: str) -> bool:
    """Whether `value` stands in `text` as whole words, in order: "12" is not in "at 12:30", nor "Rex" in "Rexford"."""
    return next(places(text.lower(), value_words(value)), None) is not None


def contains_words(haystack: list[str], needle: list[str]) -> bool:
    n = len(needle)
    return n > 0 and any(haystack[i : i + n] == needle for i in range(len(haystack) - n + 1))


def places(lowered: str, needle: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Where the words of `needle` stand one after the other in a lower-cased text: start and end of each place, none within another.

    What `contains_words` finds in all words of the text, without taking all of the text apart: most values do not stand in most texts, and
    to see that takes one search for their first word.
    """
    if not needle:
        return
    at = lowered.find(needle[0])
    while at >= 0:
        end = _end(lowered, at, needle)
        if end is not None:
            yield at, end
        at = lowered.find(needle[0], at + 1 if end is None else end)


def _end(text: str, at: int, needle: tuple[str, ...]) -> int | None:
    """Where the words of `needle` end, the first of which is written at `at`; None where that is within a word, or another word follows."""
    if at > 0 and (_in_word(text[at - 1]) or (text[at - 1] in _JOINING and at > 1 and _in_word(text[at - 2]))):
        return None
    end = at
    for i, word in enumerate(needle):
        found = _WORD.search(text, end) if i else _WORD.match(text, at)
        if found is None or found.group() != word:
            return None
        end = found.end()
    return end


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"
