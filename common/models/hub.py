"""Models by folder or hub name: what is said where there is nothing that transformers opens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.failures import InputError

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def require_nameable(where: str, name: str) -> None:
    """Raises InputError for a name that only a folder could have, and there is none: asking the hub
    for it would take half a minute to say so."""
    if not Path(name).is_dir() and (
        Path(name).is_absolute() or not HUB_NAME.fullmatch(name) or Path(name).parent.is_dir()
    ):
        raise InputError(where, "does not exist")


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Errors of transformers as one sentence that names `where`."""
    try:
        yield
    except (OSError, ValueError) as unreadable:
        raise InputError(
            where, f"is nothing that transformers opens: {' '.join(str(unreadable).split())[:200]}"
        ) from unreadable
