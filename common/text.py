"""Words in text: what counts as a word, and whether a value stands in an answer."""

from __future__ import annotations

import re
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
    needle = value_words(value)
    return bool(needle) and place(text.lower(), needle) is not None


def contains_words(haystack: list[str], needle: list[str]) -> bool:
    n = len(needle)
    return n > 0 and any(haystack[i : i + n] == needle for i in range(len(haystack) - n + 1))


def place(lowered: str, needle: tuple[str, ...], start: int = 0) -> tuple[int, int] | None:
    """Where the words of `needle`, one at least, first stand one after the other in a lower-cased text from `start` on: from and to.

    What `contains_words` finds in all words of the text, without taking all of the text apart: most values do not stand in most texts, and
    to see that takes one search for their first word.
    """
    at = lowered.find(needle[0], start)
    while at >= 0:
        end = _end(lowered, at, needle)
        if end is not None:
            return at, end
        at = lowered.find(needle[0], at + 1)
    return None


def _end(text: str, at: int, needle: tuple[str, ...]) -> int | None:
    """Where the words of `needle` end, the first of which is written at `at`; None where that is within a word, or another word follows."""
    end = at + len(needle[0])
    # A slice before the text or behind it is empty, and that is in no word.
    before, after = text[at - 1 : at], text[end : end + 1]
    if _in_word(before) or (before in _JOINING and _in_word(text[at - 2 : at - 1])):
        return None
    if _in_word(after) or (after in _JOINING and _in_word(text[end + 1 : end + 2])):
        return None
    for word in needle[1:]:
        found = _WORD.search(text, end)
        if found is None or found.group() != word:
            return None
        end = found.end()
    return end


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"
