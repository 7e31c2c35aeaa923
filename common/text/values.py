"""Whether a value stands in a text: the one definition that data, rewards and evaluation share.

A value stands in a text where it is written there, in any case and Unicode form, and what is
written is not part of another value. Both are compared in the form of common/text/characters.py.

| text                           | value     | stands | why                                           |
|--------------------------------|-----------|--------|-----------------------------------------------|
| it is REX.                     | Rex       | yes    | case and punctuation aside                    |
| Rexford                        | Rex       | no     | part of another word                          |
| she said "Rex" (*Rex*)         | Rex       | yes    | quotes, brackets and emphasis                 |
| Luna’s bowl                    | Luna      | yes    | 's 'll 'd, Turkish endings, l' and d'         |
| O'Neil                         | O         | no     | another apostrophe joins                      |
| in New, York                   | New York  | yes    | white space and . , ; : between words aside   |
| twenty-one                     | twenty    | no     | a hyphen joins, and so do _ and &             |
| Rex - or Rex- or Rex--no       | Rex       | yes    | a dash does not                               |
| at 12:30                       | 12        | no     | : , . / join digits                           |
| Name:Rex                       | Rex       | yes    | : and , do not join letters                   |
| I use node.js                  | node      | no     | a full stop joins letters …                   |
| by 7 am.Then we                | 7 am      | yes    | … unless a sentence begins after it           |
| N/A                            | A         | no     | / and & join words of one or two letters      |
| tea/coffee                     | tea       | yes    | but not longer ones                           |
| I got an A+.                   | A         | no     | + # @ % ° and currencies make another value   |
| I got an A+.                   | A+        | yes    |                                               |
| I know C++ and C#              | C         | no     |                                               |
| blood type AB-, not B-         | AB        | no     | - after one or two letters or digits is a     |
| blood type AB-, not B-         | AB-       | yes    | sign, after longer words a dash               |
| it is -5 (or –5)               | 5         | no     | - before a digit is a sign unless it joins    |
| from 3-5                       | -5        | no     |                                               |
| it costs $ 5, not 5 %          | 5         | no     | the sign may stand apart from its number      |
| it costs $ 5, not 5 %          | 5%        | yes    |                                               |
| 4.5 or .5 or 5² or 5km         | 5         | no     | decimals, powers, units without a space       |
| I like .NET                    | NET       | no     | a full stop before a word belongs to it       |
| मेरा नाम कमला है                  | कमल       | no     | vowel signs belong to the letter before them  |
| मेरा नाम कमला है                  | कमला      | yes    |                                               |
| 她的猫叫小红。                   | 小红       | yes    | no boundary in scripts without spaces …       |
| 我住在十一月                    | 一月       | no     | … except within a number …                    |
| レックスフォード                 | レックス    | no     | … within Katakana …                           |
| มาลี                           | มาล       | no     | … and within a syllable                       |
| 서울에서 왔어요                   | 서울       | yes    | Korean particles may follow                   |
| 서울대학교                       | 서울       | no     | other syllables may not                       |
| وماكس                          | ماكس      | yes    | و ب ل ال (ו ב ל ה) may stand before 4 letters |
| I feel 👍🏽                      | 👍        | no     | tones and joiners belong to an emoji          |
| I feel 👍🏽👍                    | 👍        | yes    |                                               |

`words` cuts a text at the same boundaries. Not seen: inflection, other spellings, and compounds in
scripts without spaces (五 stands in 星期五).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from common.text.boundaries import WORDS, begins, divided, ends
from common.text.characters import KIND, Kind, folded, normalised

__all__ = [
    "contains_value",
    "folded",
    "place",
    "replaced",
    "taken_out",
    "value_words",
    "words",
    "written",
]

_STANDING = WORDS | {Kind.SYMBOL, Kind.SIGN}

_SENTENCE_END = " .,;:!?…。、，！？"
_QUOTES = frozenset(('""', "''", "“”", "„“", "«»", "‹›", "「」", "『』", "**", "``"))
_GAP = re.compile(r"[.,;:\s]*\s")
_PIECES = re.compile("[a-z0-9]+|.", re.DOTALL)


def contains_value(text: str, value: str) -> bool:
    """Whether `value` stands in `text`."""
    needle = value_words(value)
    return bool(needle) and place(folded(text), needle) is not None


def written(text: str, value: str, longer: Sequence[str] = ()) -> bool:
    """Whether `value` stands in `text` with the same capitals, and not only within `longer`
    values."""
    text = normalised(text)
    for each in longer:
        text = taken_out(text, _cut(normalised(each)))
    needle = _cut(normalised(value))
    return bool(needle) and place(text, needle) is not None


@lru_cache(maxsize=8192)
def value_words(value: str) -> tuple[str, ...]:
    """A value as `place` takes it: folded, without punctuation and quotes around it, cut at spaces.

    Equal for values that are the same. Empty only if nothing is written in it.
    """
    return _cut(folded(value))


def _cut(value: str) -> tuple[str, ...]:
    whole = value.strip()
    bare = whole.rstrip(_SENTENCE_END) or whole
    if len(bare) > 2 and bare[0] + bare[-1] in _QUOTES:
        bare = bare[1:-1].strip() or bare
    return tuple(word for word in _GAP.split(bare) if word)


def place(text: str, needle: tuple[str, ...], start: int = 0) -> tuple[int, int] | None:
    """From where to where a value first stands in a text from `start` on.

    text: `folded`. needle: `value_words`, one at least. Most values do not stand in most texts, and
    to see that takes one search for their first word.
    """
    at = text.find(needle[0], start)
    while at >= 0:
        end = at + len(needle[0])
        for word in needle[1:]:
            gap = _GAP.match(text, end)
            if gap is None or not text.startswith(word, gap.end()):
                break
            end = gap.end() + len(word)
        else:
            if begins(text, at) and ends(text, end):
                return at, end
        at = text.find(needle[0], at + 1)
    return None


def taken_out(text: str, needle: tuple[str, ...]) -> str:
    """A folded text with another word in place of a value, so that its neighbours stay apart."""
    # No value can be that word.
    return _exchanged(text, needle, " \0 ")


def replaced(text: str, value: str, other: str) -> str:
    """`text` with `other` wherever `value` stands in it exactly as written."""
    return _exchanged(text, tuple(value.split()), other) if value.strip() else text


def words(text: str) -> list[str]:
    """Words of a text, `folded` and without punctuation: 11:30, a+, it's, -5."""
    found: list[str] = []
    # Words never reach over white space.
    for part in folded(text).split():
        if part.isascii() and part.isalnum():
            found.append(part)
            continue
        for piece in _PIECES.finditer(part):
            if divided(part, piece.start()):
                found.append(piece[0])
            else:
                found[-1] += piece[0]
    return [word for word in found if word != "-" and any(KIND[each] in _STANDING for each in word)]


def _exchanged(text: str, needle: tuple[str, ...], other: str) -> str:
    parts, end = [], 0
    while (found := place(text, needle, end)) is not None:
        parts.append(text[end : found[0]])
        end = found[1]
    return other.join([*parts, text[end:]])
