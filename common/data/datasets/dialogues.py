"""Dialogues of two people, from the files in which some public data sets publish them.

* Topical-Chat (Gopalakrishnan et al. 2019), `.json`: `{id: {"content": [{"message", "agent"}]}}`.
* Synthetic-Persona-Chat (Jandaghi et al. 2023), `.csv` with the columns `user 1 personas`, `user 2
  personas` and `Best Generated Conversation`: lines `User 1: …`, `User 2: …`.
* MRL rows in any file of `common/config/locations.py`: opening and follow-ups.

Who speaks first asks, the other one answers. What one says in a row is one message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from common.data.checks import kind_of
from common.data.conversations import load_rows
from common.data.decoding import parse_json, read_text
from common.data.formats import csv_records
from common.data.leftovers import Leftovers
from common.failures import InputError

PERSONAS = ("user 1 personas", "user 2 personas")
CONVERSATION = "Best Generated Conversation"
UNNAMED = "lines of a dialogue before the first one that says who speaks"
UNANSWERED = "messages without an answer"
_LINE = re.compile(r"(User [12])\s*:[\s*]*(.*)")

Said = tuple[str, str]
"""Who says something, and what."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    where: str
    """File and line, or file and name."""
    pairs: tuple[tuple[str, str], ...]
    """(query, answer), in order."""
    asker: tuple[str, ...] = ()
    """Lines of the persona of who asks; empty where the file has none."""
    answerer: tuple[str, ...] = ()
    """The same of who answers."""


def load_dialogues(source: str, left: Leftovers) -> list[Dialogue]:
    """The dialogues of a file. left: is told of messages that nobody answers.

    Raises InputError where the file is damaged or of another format.
    """
    name = source.removesuffix(".gz")
    if name.endswith(".json"):
        text = read_text(Path(source))
        if text.lstrip().startswith("{"):
            return _topical(source, text, left)
    elif name.endswith(".csv"):
        records = csv_records(read_text(Path(source)), source)
        first = next(records, None)
        if first is not None and isinstance(first[1], Mapping) and CONVERSATION in first[1]:
            return list(_persona([first, *records], left))
    return [
        Dialogue(
            f"{source}, conversation {number}",
            tuple((turn.query, turn.answer) for turn in row.turns),
        )
        for number, row in enumerate(load_rows(source), 1)
    ]


def _topical(source: str, text: str, left: Leftovers) -> list[Dialogue]:
    try:
        chats = parse_json(text)
    except ValueError as broken:
        raise InputError(source, str(broken)) from None
    found = []
    for name, chat in chats.items():
        where = f"{source}, {name}"
        content = chat.get("content") if isinstance(chat, dict) else None
        if not isinstance(content, list):
            raise InputError(
                where, f"should have `content`, a list of messages, not {kind_of(content)}"
            )
        found.append(Dialogue(where, _pairs(_messages(content, where), where, left)))
    return found


def _messages(content: list[Any], where: str) -> Iterator[Said]:
    for number, message in enumerate(content, 1):
        said = (
            (message.get("agent"), message.get("message"))
            if isinstance(message, dict)
            else (None, None)
        )
        if not all(isinstance(each, str) for each in said):
            raise InputError(
                f"{where}, message {number}", "should have `agent` and `message`, both text"
            )
        yield said  # type: ignore[misc]  # both are texts


def _persona(records: Iterable[tuple[str, Any]], left: Leftovers) -> Iterator[Dialogue]:
    for where, record in records:
        if isinstance(record, InputError):
            raise record
        said: list[Said] = []
        for written in (record[CONVERSATION] or "").splitlines():
            # The published file has lines of "* * *", and some in bold type: "*User 1:* Hi!".
            line = written.strip("* ")
            if not line:
                continue
            found = _LINE.fullmatch(line)
            if found is None and not said:
                left.add(UNNAMED, where)
                continue
            # A line without a name goes on with what was said.
            said.append((found[1], found[2]) if found else (said[-1][0], line))
        lines = {
            f"User {number}": tuple(
                line.strip() for line in (record.get(name) or "").splitlines() if line.strip()
            )
            for number, name in enumerate(PERSONAS, 1)
        }
        asker = said[0][0] if said else "User 1"
        answerer = next(name for name in lines if name != asker)
        pairs = _pairs(said, where, left)
        yield Dialogue(where, pairs, lines[asker], lines[answerer])


def _pairs(said: Iterable[Said], where: str, left: Leftovers) -> tuple[tuple[str, str], ...]:
    """The messages two by two. left: is told of the last one, where nobody answers it."""
    written = [(who, " ".join(text.split())) for who, text in said if text.strip()]
    texts = [
        " ".join(text for _, text in spoken) for _, spoken in groupby(written, lambda each: each[0])
    ]
    if len(texts) % 2:
        left.add(UNANSWERED, where)
    return tuple(zip(texts[::2], texts[1::2], strict=False))
