"""Differences between two configurations, key by key down to the leaf."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from common.config.section import Section

TAGS = ("kind", "stage")
"""Keys that say which other keys a section has."""
ABSENT = object()
"""Stands for a setting that one of the two does not have."""


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that is not what it was. key: dotted, with indices, such as `stages.0.steps`."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} changed from {described(self.before)} to {described(self.now)}"


def described(value: Any) -> str:
    """In full and on one line: two long values may differ at their ends only."""
    return "not set" if value is ABSENT else json.dumps(value, ensure_ascii=False)


def changes(before: Section, now: Section) -> list[Change]:
    """Every leaf that differs, in the order of the keys."""
    return list(_changes("", before.model_dump(mode="json"), now.model_dump(mode="json")))


def _changes(key: str, before: Any, now: Any) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(now, dict):
        tag = next((tag for tag in TAGS if before.get(tag) != now.get(tag)), None)
        # A section of another kind has other keys, all of which would be reported too.
        for name in [tag] if tag is not None else dict.fromkeys([*before, *now]):
            below = f"{key}.{name}" if key else name
            yield from _changes(below, before.get(name, ABSENT), now.get(name, ABSENT))
    elif _holds_sections(before) and _holds_sections(now):
        for index in range(max(len(before), len(now))):
            old, new = (items[index] if index < len(items) else ABSENT for items in (before, now))
            yield from _changes(f"{key}.{index}", old, new)
    elif before != now:
        yield Change(key, before, now)


def _holds_sections(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)
