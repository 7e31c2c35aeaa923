"""Words in text: what counts as a word, and whether a value stands in an answer."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+(?:['’.:-]\w+)*")


def words(text: str) -> list[str]:
    """Lower-cased words; times, hyphenated words and decimals (11:30, twenty-one, 4.5) stay whole."""
    return _WORD.findall(text.lower())


def contains_value(text: str, value: str) -> bool:
    """Whether `value` stands in `text` as whole words, in order: "12" is not in "at 12:30", nor "Rex" in "Rexford"."""
    return contains_words(words(text), words(value))


def contains_words(haystack: list[str], needle: list[str]) -> bool:
    n = len(needle)
    return n > 0 and any(haystack[i : i + n] == needle for i in range(len(haystack) - n + 1))
