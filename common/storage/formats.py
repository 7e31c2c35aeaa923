"""Format numbers of what a run writes, and what is said of another one.

Whoever changes what a file means raises its number. A run is not converted: the version of engram
that wrote it goes on with it.
"""

from __future__ import annotations

from typing import Final

from common.failures import InputError

CONFIG: Final = 1
"""Version of RUN/config.yaml."""
EPISODES: Final = 2
"""Version of the tables in RUN/episodes."""
CHECKPOINT: Final = 3
"""Version of a checkpoint and its manifest."""


def require_format(where: str, found: object, known: int) -> None:
    """Raises InputError where something was written in another format than is read here."""
    if found != known:
        written = "without a format number" if found is None else f"in format {found}"
        raise InputError(
            where,
            f"was written {written} by another version of engram, and this one reads format "
            f"{known}: use the version that wrote it, or begin anew under another name",
        )
