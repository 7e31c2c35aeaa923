"""Base of the records that travel between actors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from operator import attrgetter
from typing import Any


@cache
def values_of(record: type[Record]) -> Callable[[Record], tuple[Any, ...]]:
    """Gives the values of a record's fields, in order."""
    return attrgetter(*(field.name for field in fields(record)))  # type: ignore[arg-type]


class Record:
    """Pickled as the values of its fields, two at least, which go back to the constructor in order:
    in half the time of what dataclasses with slots do by themselves."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[Record], tuple[Any, ...]]:
        return type(self), values_of(type(self))(self)  # type: ignore[arg-type]
