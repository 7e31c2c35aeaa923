"""What a command says on its standard error."""

from __future__ import annotations


def sentences(said: str) -> list[str]:
    """The lines of `said` without those of progress ("engram: reading the data of tiny ..."), which
    a command shows only when a step lasts, and so more of them on a slow machine."""
    return [line for line in said.splitlines() if not line.endswith(" ...")]
