"""From bytes of data files to text, and from text to JSON values: every way in which they can be
damaged is one sentence."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from common.failures import InputError, no_such_file

BOM = "\ufeff"
"""Byte order mark, which editors on Windows write before a text."""
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""Part of a pair that stands for one character, such as an emoji; only such text has to be
searched for halves."""


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, decompressed where its name ends in .gz, without a byte order mark.

    Raises InputError where it cannot be read whole.
    """
    compressed = path.suffix == ".gz"
    kind = "gzipped UTF-8 text" if compressed else "UTF-8 text"
    try:
        content = path.read_bytes()
        if compressed:
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise no_such_file(path) from None
    except (OSError, EOFError, zlib.error) as unreadable:
        reason = unreadable.strerror if isinstance(unreadable, OSError) else None
        raise InputError(
            str(path), f"cannot be read as {kind}: {reason or unreadable}"
        ) from unreadable
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(str(path), "is UTF-16 text; save it as UTF-8")
    try:
        return content.decode("utf-8").removeprefix(BOM)
    except UnicodeDecodeError as other:
        line = content.count(b"\n", 0, other.start) + 1
        raise InputError(
            f"{path}, line {line}",
            f"cannot be read as {kind}: byte 0x{content[other.start]:02x} belongs to another "
            "encoding; save the file as UTF-8",
        ) from other


def parse_json(text: str) -> Any:
    """The value of a JSON text, or of a line of JSON Lines.

    Raises ValueError, which says what is wrong in one sentence. Beside what JSON forbids, that is a
    field that stands twice in one object, NaN and infinite numbers, and half of a character.
    """
    try:
        value = json.loads(
            text.removeprefix(BOM),
            object_pairs_hook=_fields,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except json.JSONDecodeError as broken:
        what = f"{broken.msg[:1].lower()}{broken.msg[1:]}".removesuffix(" at")
        raise ValueError(f"broken JSON: {what} at column {broken.colno}") from None
    except RecursionError:
        raise ValueError("is nested too deep to be read") from None
    if _ESCAPED_HALF.search(text):
        for place, string in _strings(value):
            half = _HALF.search(string)
            if half is not None:
                raise ValueError(
                    f"{place or 'the record'} holds half of a character "
                    f"(\\u{ord(half[0]):04x}): an emoji that was cut in two"
                )
    return value


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {shortened(twice)!r} is written twice")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {shortened(digits)} is too large")
    return number


def _whole(digits: str) -> int:
    # Python refuses to convert very long ones, and no field means such a number.
    if len(digits) > 100:
        raise ValueError(f"a number of {len(digits.lstrip('-'))} digits is too large")
    return int(digits)


def _strings(value: Any) -> Iterator[tuple[str, str]]:
    """(dotted place, text) of every string in a value, names of fields included."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        place, each = waiting.pop()
        if isinstance(each, str):
            yield place, each
        elif isinstance(each, dict):
            yield from ((place, name) for name in each)
            waiting += [(f"{place}.{name}".lstrip("."), item) for name, item in each.items()]
        elif isinstance(each, list):
            waiting += [(f"{place}.{i}".lstrip("."), item) for i, item in enumerate(each)]


def shortened(text: str) -> str:
    """A text for an error message, short enough for one line."""
    return text if len(text) <= 60 else f"{text[:57]}…"
