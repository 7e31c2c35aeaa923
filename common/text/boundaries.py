"""Where in a text one word may end and another begin: by script, and by the signs beside words.

Texts are `normalised` or `folded` (common/text/characters.py). The table in common/text/values.py
shows what follows from these rules.
"""

from __future__ import annotations

import re
import string

from common.text.characters import KIND, ZWJ, ZWNJ, Kind

_ASCII = frozenset(string.ascii_lowercase + string.digits)
WORDS = frozenset((Kind.LETTER, Kind.DIGIT, Kind.OPEN, Kind.KATAKANA, Kind.HANGUL))
_SPACED = frozenset((Kind.LETTER, Kind.DIGIT))
_SPELT = _SPACED | {Kind.MARK}

# --- beginnings and ends --------------------------------------------------------------------------

_SIGNED = re.compile(r"[^\W_]{1,2}[+#-](?!\w)")
_ELISION = re.compile(
    r"(?<!\w)(?:[cdjlmnst]|qu|jusqu|lorsqu|puisqu|un|all|dall|dell|nell|sull)'$", re.IGNORECASE
)
_CLITIC = re.compile(
    r"'(?:s|ll|d|ve|re|m|[dt][ae]n?|[nys]?[ıiuü]n?|[ny]?[ae]|y?l[ae]|l[ıiuü])(?!\w)", re.IGNORECASE
)
"""English, and the case endings that Turkish sets behind a name."""
_PARTICLE = re.compile(
    "은|는|이|가|을|를|의|에|께|와|과|랑|하고|한테|으로|로|도|만|까지|부터|마다|처럼|보다|조차|밖에|대로"
    "|예요|에요|였|입니|인데|인가|라고|라는|라서|라도|란|랍|래요|거든|일까|일지|인지|야|네요|네$|죠|지요|지만|군요|구나|님|씨|들|뿐|요|던"
    r"|(?:나|고|며|면|아|여|인|일|임|다)(?!\w)"
)
_ARABIC_OR_HEBREW = re.compile("[\u05d0-\u05ea\u0620-\u064a\u066e-\u06d3]{4}")
_PREFIX = re.compile(r"(?<!\w)(?:[وف]?[بل]?(?:ال)?|[وف]?لل|ו?ש?[בהלמ]?)$")


def begins(text: str, at: int) -> bool:
    """Whether a value may begin at this position."""
    if divided(text, at):
        return True
    before = text[at - 1]
    if before == "'":
        return _ELISION.search(text[max(0, at - 9) : at]) is not None
    if before > "\u05cf" and _ARABIC_OR_HEBREW.match(text, at):
        return _PREFIX.search(text[max(0, at - 6) : at]) is not None
    return False


def ends(text: str, end: int) -> bool:
    """Whether a value may end at this position."""
    if divided(text, end):
        return True
    if text[end] == "'":
        return _CLITIC.match(text, end) is not None
    if KIND[text[end]] is Kind.HANGUL and KIND[text[end - 1]] is Kind.HANGUL:
        return _PARTICLE.match(text, end) is not None
    return False


def divided(text: str, at: int) -> bool:
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
    if before in WORDS and after in WORDS:
        return _words_divided(text, at, before, after)
    if before in _SPACED:
        return not _clings_back(text, at)
    if after in WORDS:
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
    """`divided` for two letters or digits."""
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
        if beyond in WORDS:
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
