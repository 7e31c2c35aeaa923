"""RUN/examples.json: a few conversations that the run learns from, so that whoever talks to its
model sees what it knows about, also where the training data are not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice

from common.episode import Row
from common.failures import InputError
from common.storage.run_directory import RunDirectory

EXAMPLES = "examples.json"
CONVERSATIONS = 3
CONSIDERED = 500
"""Conversations from the start of the data among which examples are chosen."""

Interactions = list[tuple[str, str]]
"""(query, answer) in order."""


def write_examples(directory: RunDirectory, train: Sequence[Row]) -> None:
    """Short conversations near the start of the data, those that ask for facts first. Each asks
    something that those before it do not, as far as there are such."""
    rows = sorted(
        islice(train, CONSIDERED), key=lambda row: (not _asks(row), _characters(row), row.query)
    )
    asked: set[str] = set()
    different: list[Row] = []
    others: list[Row] = []
    for row in rows:
        questions = {turn.query for turn in row.interactions if turn.facts}
        (different if questions - asked else others).append(row)
        asked |= questions
    rows = [*different, *others]
    directory.write_json(
        EXAMPLES,
        {
            "conversations": [
                # Where nothing was told before the first query, there is no opening to show.
                [[turn.query, turn.answer] for turn in row.turns if turn.query or turn.answer]
                for row in rows[:CONVERSATIONS]
            ]
        },
    )


def read_examples(directory: RunDirectory) -> list[Interactions]:
    """Empty for a run that wrote none. Raises InputError where the file is damaged."""
    if not directory.exists(EXAMPLES):
        return []
    try:
        found = json.loads(directory.read_text(EXAMPLES))["conversations"]
        return [[(str(query), str(answer)) for query, answer in turns] for turns in found]
    except (ValueError, TypeError, KeyError) as broken:
        raise InputError(directory.path(EXAMPLES), f"is damaged ({broken})") from broken


def _asks(row: Row) -> bool:
    return any(turn.facts for turn in row.interactions)


def _characters(row: Row) -> int:
    return sum(len(turn.query) + len(turn.answer) for turn in row.turns)
