"""Differences between two configurations, key by key down to the leaf."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from common.config.errors import Place
from common.config.section import Section

TAGS = ("kind", "stage")
"""Keys that say which other keys a section has."""
ABSENT = object()
"""Stands for a setting that one of the two does not have."""


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that is not what it was."""

    place: Place
    """Keys and indices from the root."""
    key: str
    """The same dotted, as an override writes it: `stages.sft.steps`."""
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} changed from {described(self.before)} to {described(self.now)}"


def described(value: Any) -> str:
    """In full and on one line: two long values may differ at their ends only."""
    return "not set" if value is ABSENT else json.dumps(value, ensure_ascii=False)


def changes(before: Section, now: Section) -> list[Change]:
    """Every leaf that differs, in the order of the keys."""
    return list(_changes((), "", before.model_dump(mode="json"), now.model_dump(mode="json")))


def _changes(place: Place, key: str, before: Any, now: Any) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(now, dict):
        tag = next((tag for tag in TAGS if before.get(tag) != now.get(tag)), None)
        # A section of another kind has other keys, all of which would be reported too.
        for name in [tag] if tag is not None else dict.fromkeys([*before, *now]):
            below = f"{key}.{name}" if key else name
            yield from _changes(
                (*place, name), below, before.get(name, ABSENT), now.get(name, ABSENT)
            )
    elif _holds_sections(before) and _holds_sections(now):
        for index in range(max(len(before), len(now))):
            old, new = (items[index] if index < len(items) else ABSENT for items in (before, now))
            below = f"{key}.{_label(index, before, now)}"
            yield from _changes((*place, index), below, old, new)
    elif before != now:
        yield Change(place, key, before, now)


def _label(index: int, *lists: list[Any]) -> str:
    """The name by which an override reaches an item: its tag or `name`, where all lists have it at
    this index and nowhere else; else the index."""
    for key in (*TAGS, "name"):
        names = [[item.get(key) for item in items if isinstance(item, dict)] for items in lists]
        name = names[0][index] if index < len(names[0]) else None
        if name is not None and all(
            each[index : index + 1] == [name] and each.count(name) == 1 for each in names
        ):
            return str(name)
    return str(index)


def _holds_sections(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)
