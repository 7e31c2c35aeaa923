"""A number with the name of what is counted."""

from __future__ import annotations


def counted(number: int, unit: str) -> str:
    """ "1 conversation", "1,234 conversations". unit: the plural, which ends in "s"."""
    return f"{number:,} {unit.removesuffix('s') if number == 1 else unit}"
