"""Characters as values are compared: one form for each, and what kind each is of.

Two texts are the same if they are after NFC and `str.casefold`, with the compatibility forms of
NFKC for width, ligatures, presentation forms and fonts (Ａ = A, ﬁ = fi, NBSP = space). Full NFKC
would make other values equal: 5² = 52, 3½ = 31⁄2, Rex™ = RexTM. So superscripts, subscripts,
fractions, circled and squared characters stay as they are. İ folds to i, since people type it so;
ı stays another letter than i, since Turkish words differ in it. Marks (vowel signs, viramas,
accents) are never dropped.
"""

from __future__ import annotations

import re
import unicodedata
from enum import IntEnum

ZWNJ, ZWJ = "\u200c", "\u200d"


class Kind(IntEnum):
    """The role of a character beside words."""

    GAP = 0
    """Spaces and punctuation."""
    LETTER = 1
    """A letter of a script that writes spaces between words."""
    DIGIT = 2
    OPEN = 3
    """A letter of a script without spaces between words."""
    KATAKANA = 4
    HANGUL = 5
    MARK = 6
    """Belongs to the character before it: vowel signs, viramas, joiners, modifiers of emoji."""
    SIGN = 7
    """Makes another value of what it touches: + - # % $ @ …"""
    SYMBOL = 8
    """Stands by itself, such as emoji and arrows."""


# Han, Hiragana, Bopomofo, Yi, Thai, Lao, Khmer, Burmese, the Tai scripts, Balinese, Javanese, Cham.
_OPEN = re.compile(
    "[\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec6\u0edc-\u0edf"
    "\u1000-\u103f\u1050-\u108f\u109a-\u109f\uaa60-\uaa7f\ua9e0-\ua9ef\ua9fa-\ua9fe"
    "\u1780-\u17d7\u17dc\u1950-\u19ab\u19b0-\u19c9\u1a00-\u1a5e\u1aa7\u1b05-\u1b4b\ua984-\ua9b2"
    "\uaa00-\uaa42\uaa80-\uaadd\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u303c"
    "\u3041-\u3096\u309d-\u309f\u3105-\u312f\u3190-\u31bf\u31f0\u3400-\u4dbf\u4e00-\u9fff"
    "\ua000-\ua48c\uf900-\ufaff\U00020000-\U0003ffff]"
)
_KATAKANA = re.compile("[\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff]")
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff]")
_SCRIPTS = {Kind.OPEN: _OPEN, Kind.KATAKANA: _KATAKANA, Kind.HANGUL: _HANGUL}
_SIGNS = frozenset("+-#%‰°±∓♯♭@^")
_TAG_OR_TONE = re.compile("[\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")


class Kinds(dict[str, Kind]):
    """Kind of each character; "" is a gap."""

    def __missing__(self, character: str) -> Kind:
        kind = self[character] = _kind(character)
        return kind


def _kind(character: str) -> Kind:
    if character == "":
        return Kind.GAP
    category = unicodedata.category(character)
    if category[0] == "M" or character in (ZWJ, ZWNJ) or _TAG_OR_TONE.match(character):
        return Kind.MARK
    if category[0] == "N" and not _OPEN.match(character):
        return Kind.DIGIT
    if category[0] == "L" or category == "Nl":
        found = (kind for kind, letters in _SCRIPTS.items() if letters.match(character))
        return next(found, Kind.LETTER)
    if character in _SIGNS or category == "Sc":
        return Kind.SIGN
    return Kind.SYMBOL if category in ("Sm", "So", "Co", "Cn", "Cs") else Kind.GAP


KIND = Kinds()

# --- one form for each character -----------------------------------------------------------------

_OTHER_VALUES = ("<super>", "<sub>", "<fraction>", "<circle>", "<square>")
_WRITTEN_ALIKE = {
    **dict.fromkeys("‘’ʼ＇", "'"),
    **dict.fromkeys("‐‑‒−﹣－", "-"),
    "İ": "i",
    # A comma between clauses, unlike "," between digits.
    "，": "，",
    # A sign of its own: "№5" is not the word "no5".
    "№": "№",
    # Only stretches the word.
    "\u0640": "",
}


class _Forms(dict[int, str]):
    """For `str.translate`: the form of each character that texts are compared in, case aside."""

    def __missing__(self, code: int) -> str:
        form = self[code] = _form(chr(code))
        return form


def _form(character: str) -> str:
    if character in _WRITTEN_ALIKE:
        return _WRITTEN_ALIKE[character]
    if unicodedata.category(character) == "Cf":
        # Invisible: soft hyphens, marks of direction, zero-width spaces. Joiners and tags are not.
        return character if KIND[character] is Kind.MARK else ""
    if "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef":
        return ""  # Variants of one emoji or character.
    decomposition = unicodedata.decomposition(character)
    if not decomposition.startswith("<") or decomposition.startswith(_OTHER_VALUES):
        return character
    form = "".join(map(_form, unicodedata.normalize("NFKC", character)))
    # A spacing accent is not a space with an accent on it.
    return form if " " not in form or character.isspace() else character


_FORMS = _Forms()
_MINUS = re.compile(r"(?:^|(?<=[\s(\[{=~≈<>]))–(?=\.?\d)")
_STOP = re.compile(r"(?<=[^\s.])\.(?=[^\W\d_])")
_CURRENCIES = "$€£¥₹₽₩₺₴฿"
_APART = re.compile(rf"(?<=[{_CURRENCIES}])\s+(?=\d)|(?<=\d)\s+(?=[%‰]|[{_CURRENCIES}](?!\s*\d))")


def normalised(text: str) -> str:
    """Text in one form of each character, case kept: NFC, widths, ligatures, hyphens, apostrophes.

    A space comes after a full stop that ends a sentence without one ("5 pm.The"), and none stands
    between a number and its per cent or currency ("5 %", "$ 5").
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_FORMS)
        if "–" in text:
            text = _MINUS.sub("-", text)
        text = unicodedata.normalize("NFC", _APART.sub("", text))
    elif "%" in text or "$" in text:
        text = _APART.sub("", text)
    return _STOP.sub(_spaced_stop, text) if "." in text else text


def folded(text: str) -> str:
    """`normalised`, and upper and lower case the same: the text that values are sought in."""
    text = normalised(text)
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", text.casefold())


def _spaced_stop(stop: re.Match[str]) -> str:
    """ ". " where a capitalised word follows: not in "node.js", "U.S." or "ASP.NET"."""
    text, at = stop.string, stop.start()
    first, second = text[at + 1], text[at + 2 : at + 3]
    if first.isupper() and second.islower():
        return ". "
    # "I" and "A" are words of one letter, but so are the parts of "U.S.A".
    alone = first in "IA" and not second.isalnum() and second != "."
    return ". " if alone and not text[at - 1].isupper() else "."
