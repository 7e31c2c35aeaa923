"""Whether a value stands in a text: the one definition that data, rewards and evaluation share.

A value stands in a text where it is written there, in any case and Unicode form, and what is
written is not part of another value. Both are compared in the form of common/characters.py.

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

`words` cuts a text at the same boundaries. What this leaves out: inflection, spelling, and words of
one script inside compounds (seals in "Waldseals", 五 in 星期五).
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import lru_cache

from common.characters import KIND, ZWJ, ZWNJ, Kind, folded, normalised

__all__ = ["contains_value", "folded", "place", "replaced", "taken_out", "value_words", "words", "written"]

_ASCII = frozenset(string.ascii_lowercase + string.digits)
_WORDS = frozenset((Kind.LETTER, Kind.DIGIT, Kind.OPEN, Kind.KATAKANA, Kind.HANGUL))
_SPACED = frozenset((Kind.LETTER, Kind.DIGIT))
_SPELT = _SPACED | {Kind.MARK}
_STANDING = _WORDS | {Kind.SYMBOL, Kind.SIGN}

_SENTENCE_END = " .,;:!?…。、，！？"
_QUOTES = frozenset(('""', "''", "“”", "„“", "«»", "‹›", "「」", "『』", "**", "``"))
_GAP = re.compile(r"[.,;:\s]*\s")
_PIECES = re.compile("[a-z0-9]+|.", re.DOTALL)


def contains_value(text: str, value: str) -> bool:
    """Whether `value` stands in `text`."""
    needle = value_words(value)
    return bool(needle) and place(folded(text), needle) is not None


def written(text: str, value: str, longer: Sequence[str] = ()) -> bool:
    """Whether `value` stands in `text` with the same capitals, and not only within `longer` values."""
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
            if _begins(text, at) and _ends(text, end):
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
            if _divided(part, piece.start()):
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


# --- where words begin and end -------------------------------------------------------------------

_SIGNED = re.compile(r"[^\W_]{1,2}[+#-](?!\w)")
_ELISION = re.compile(r"(?<!\w)(?:[cdjlmnst]|qu|jusqu|lorsqu|puisqu|un|all|dall|dell|nell|sull)'$", re.IGNORECASE)
_CLITIC = re.compile(r"'(?:s|ll|d|ve|re|m|[dt][ae]n?|[nys]?[ıiuü]n?|[ny]?[ae]|y?l[ae]|l[ıiuü])(?!\w)", re.IGNORECASE)
"""English, and the case endings that Turkish sets behind a name."""
_PARTICLE = re.compile(
    "은|는|이|가|을|를|의|에|께|와|과|랑|하고|한테|으로|로|도|만|까지|부터|마다|처럼|보다|조차|밖에|대로"
    "|예요|에요|였|입니|인데|인가|라고|라는|라서|라도|란|랍|래요|거든|일까|일지|인지|야|네요|네$|죠|지요|지만|군요|구나|님|씨|들|뿐|요|던"
    r"|(?:나|고|며|면|아|여|인|일|임|다)(?!\w)"
)
_ARABIC_OR_HEBREW = re.compile("[\u05d0-\u05ea\u0620-\u064a\u066e-\u06d3]{4}")
_PREFIX = re.compile(r"(?<!\w)(?:[وف]?[بل]?(?:ال)?|[وف]?لل|ו?ש?[בהלמ]?)$")


def _begins(text: str, at: int) -> bool:
    """Whether a value may begin at this position."""
    if _divided(text, at):
        return True
    before = text[at - 1]
    if before == "'":
        return _ELISION.search(text[max(0, at - 9) : at]) is not None
    if before > "\u05cf" and _ARABIC_OR_HEBREW.match(text, at):
        return _PREFIX.search(text[max(0, at - 6) : at]) is not None
    return False


def _ends(text: str, end: int) -> bool:
    """Whether a value may end at this position."""
    if _divided(text, end):
        return True
    if text[end] == "'":
        return _CLITIC.match(text, end) is not None
    if KIND[text[end]] is Kind.HANGUL and KIND[text[end - 1]] is Kind.HANGUL:
        return _PARTICLE.match(text, end) is not None
    return False


def _divided(text: str, at: int) -> bool:
    """Whether the characters before and at this position belong to different words."""
    if at == 0 or at == len(text):
        return True
    left, right = text[at - 1], text[at]
    # Most are of these two, which are quickly told.
    if left == " " or right == " ":
        return True
    if left in _ASCII and right in _ASCII:
        return False
    before, after = KIND[left], KIND[right]
    if Kind.GAP in (before, after) and (left.isspace() or right.isspace()):
        return True
    if after is Kind.MARK or left in _STACKING:
        return False
    if before is Kind.MARK:
        before = KIND[_base(text, at - 1)]
    if before in _WORDS and after in _WORDS:
        return _words_divided(text, at, before, after)
    if before in _SPACED:
        return not _clings_back(text, at)
    if after in _WORDS:
        return not _clings_on(text, at - 1)
    if before is Kind.SIGN:
        return not (after is Kind.SIGN or (right == "." and text[at + 1 : at + 2].isdigit()))
    return not (_flag(left) and _flag(right) and _in_flag(text, at))


# Khmer coeng, Burmese and Tai Tham: the next consonant stands under this one.
_STACKING = frozenset((ZWJ, ZWNJ, "\u17d2", "\u1039", "\u1a60"))
_LEADING_VOWELS = frozenset("เแโใไເແໂໃໄ")
_FOLLOWING_VOWELS = frozenset("ะาๅະາ")
_ASAT = frozenset("\u103a\u1039")
_NUMERALS = frozenset("〇零一二三四五六七八九十百千万萬億亿两兩")
_UNITS = frozenset("〇零十百千万萬億亿")


def _base(text: str, at: int) -> str:
    """The character that the marks up to this position belong to."""
    while at > 0 and KIND[text[at]] is Kind.MARK:
        at -= 1
    return text[at]


def _words_divided(text: str, at: int, before: Kind, after: Kind) -> bool:
    """`_divided` for two letters or digits."""
    left, right = text[at - 1], text[at]
    if before in _SPACED and after in _SPACED:
        return False
    if before is not after:
        return True
    if before is Kind.OPEN:
        if left in _NUMERALS and right in _NUMERALS:
            # 十一 is a number, while 二一 may be Tuesday and the next word.
            return left not in _UNITS and right not in _UNITS
        closes_syllable = "\u1000" <= right <= "\u109f" and text[at + 1 : at + 2] in _ASAT
        return not (left in _LEADING_VOWELS or right in _FOLLOWING_VOWELS or closes_syllable)
    return False


def _flag(character: str) -> bool:
    """Whether the character is a regional indicator, two of which make a flag."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _in_flag(text: str, at: int) -> bool:
    """Whether a flag is cut at this position."""
    first = at
    while first > 0 and _flag(text[first - 1]):
        first -= 1
    return (at - first) % 2 == 1


# --- signs beside words --------------------------------------------------------------------------


def _clings_back(text: str, at: int) -> bool:
    """Whether the sign at this position belongs to the letter or digit before it."""
    sign = text[at]
    if sign == "-":
        beyond = KIND[text[at + 1 : at + 2]]
        if beyond in _WORDS:
            return True
        # "A-" is a grade; "Rex-" breaks off, and "--" is a dash.
        return text[at + 1 : at + 2] != "-" and _short_before(text, at)
    if sign == "*":
        starred = text[max(0, at - 3) : at].find("*") >= 0
        return not starred and _short_before(text, at) and text[at + 1 : at + 2] != "*"
    if sign in "%‰°":
        return KIND[text[at - 1]] is Kind.DIGIT
    return KIND[sign] is Kind.SIGN or _joins(text, at)


def _clings_on(text: str, at: int) -> bool:
    """Whether the sign at this position belongs to the letter or digit after it."""
    sign, beyond = text[at], text[at - 1 : at]
    digit = KIND[text[at + 1]] is Kind.DIGIT
    follows_word = at > 0 and KIND[_base(text, at - 1)] in _SPACED
    follows_sign = KIND[beyond] is Kind.SIGN
    if KIND[text[at + 1]] not in _SPACED:
        # "气温-5" is a number, but no sign reaches from a word to a script without spaces.
        return sign in "@#" and not follows_word
    if sign == "-":
        return follows_word or ((digit or follows_sign) and beyond != "-")
    if sign == ".":
        return _joins(text, at) or at == 0 or follows_sign or beyond in " \t\n([{\"'“«"
    if sign in "%‰°":
        return digit or follows_sign or KIND[beyond] is Kind.DIGIT
    if sign in "+♯♭":
        return follows_word or follows_sign or digit
    return KIND[sign] is Kind.SIGN or _joins(text, at)


def _joins(text: str, at: int) -> bool:
    """Whether the character at this position makes one word of those on both sides of it."""
    if at == 0 or at + 1 >= len(text):
        return False
    left, right = _base(text, at - 1), text[at + 1]
    before, after = KIND[left], KIND[right]
    if before not in _SPACED or after not in _SPACED:
        return False
    digits = before is Kind.DIGIT and after is Kind.DIGIT
    sign = text[at]
    if sign in "'_·׳״":
        return True
    if sign in ":,":
        return digits
    if sign == ".":
        return digits or ((before is Kind.DIGIT or _cased(left)) and _cased(right))
    if sign == "/" and _SIGNED.match(text, at + 1):
        return False  # C/C++
    if sign in "/&":
        return digits or _short_before(text, at) or _short_after(text, at + 1)
    return False


def _cased(character: str) -> bool:
    return character.lower() != character.upper()


def _short_before(text: str, at: int) -> bool:
    """Whether a word of at most two letters and digits ends here."""
    return at < 3 or not all(KIND[each] in _SPELT for each in text[at - 3 : at])


def _short_after(text: str, at: int) -> bool:
    return at + 3 > len(text) or not all(KIND[each] in _SPELT for each in text[at : at + 3])
