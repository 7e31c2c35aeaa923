"""Counts of what a conversion leaves out or changes, with the place of the first example."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One kind of thing that was left out or changed."""

    what: str
    number: int
    first: str
    """File and line of the first one."""


class Leftovers:
    """Counts by kind, in the order in which kinds were first met."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, what: str, where: str, count: int = 1) -> None:
        """Count `count` more of the kind `what`, found at `where`."""
        self._counts[what] = self._counts.get(what, 0) + count
        self._first.setdefault(what, where)

    def entries(self) -> list[Entry]:
        return [Entry(what, count, self._first[what]) for what, count in self._counts.items()]
