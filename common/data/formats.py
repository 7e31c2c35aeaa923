"""Records from the text of a data file: JSON lines, a JSON array, CSV, or lines of plain text.

Each function yields (where, record), and (where, InputError) for a record that cannot be decoded.
Raises InputError where nothing after a fault can be read.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from typing import Any

from common.data.decoding import parse_json
from common.failures import InputError

Records = Iterator[tuple[str, Any]]


def json_lines(text: str, name: str) -> Records:
    """A record on each line."""
    # Not splitlines(): JSON strings may hold other line separators than "\n".
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{name}, line {number}"
            try:
                yield where, parse_json(line)
            except ValueError as broken:
                yield where, InputError(where, str(broken))


def json_records(text: str, name: str) -> Records:
    """The records of one array. Text that does not begin with one is read as JSON lines, which
    many files of this ending hold."""
    if not text.lstrip().startswith("["):
        _require_lines(text, name)
        yield from json_lines(text, name)
        return
    try:
        records = parse_json(text)
    except ValueError as broken:
        raise InputError(name, str(broken)) from None
    for number, record in enumerate(records, 1):
        yield f"{name}, record {number}", record


def _require_lines(text: str, name: str) -> None:
    """Raises InputError where a text is one JSON value over several lines."""
    lines = text.strip().split("\n")
    if len(lines) > 1:
        try:
            parse_json(lines[0])
        except ValueError:
            try:
                value = parse_json(text)
            except ValueError:
                return  # the faults of its lines say more
            lists = [key for key, each in value.items() if isinstance(each, list)]
            inner = f", such as its field {lists[0]!r}" if lists else ""
            raise InputError(
                name,
                f"holds one JSON object, but should hold an array of records{inner}, or a record "
                "on each line",
            ) from None


def csv_records(text: str, name: str) -> Records:
    """A record of each row after the header, all of text. An empty cell is null."""
    # A cell holds a text of any length. The limit is the process's, and nothing else reads CSV.
    csv.field_size_limit(sys.maxsize)
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows, None)
        except csv.Error as broken:
            raise InputError(f"{name}, line {line}", f"broken CSV: {broken}") from None
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{name}, line {line}"
        if not header:
            header = [cell.strip() for cell in cells]
            _require_header(header, where)
        elif len(cells) != len(header):
            yield (
                where,
                InputError(
                    where,
                    f"has {len(cells)} cells, the header names {len(header)}: a cell with commas "
                    "or line breaks stands in double quotes",
                ),
            )
        else:
            yield where, {key: cell or None for key, cell in zip(header, cells, strict=True)}


def _require_header(header: list[str], where: str) -> None:
    if header[0].startswith(("{", "[")):
        raise InputError(
            where,
            "is JSON, but should name the columns: is it a .jsonl file with another ending?",
        )
    for number, column in enumerate(header, 1):
        if not column:
            raise InputError(where, f"column {number} of the header has no name")
        if header.count(column) > 1:
            raise InputError(where, f"the header names {column!r} twice")
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            raise InputError(where, f"the cells are separated by {word}, but should be by commas")


def text_records(text: str, name: str) -> Records:
    """A text of each line that is not blank, as the loader `text` of `datasets` reads it."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{name}, line {number}", {"text": line.rstrip("\r")}
