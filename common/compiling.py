"""How inner loops are compiled from Python, by Numba."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from numba import config, njit
from numba.core import caching

Function = TypeVar("Function", bound=Callable[..., Any])

REORDERED = {"reassoc", "contract", "nsz"}
"""What sums may do to be computed in vectors. Not "nnan" or "ninf": a row that is not finite has to show."""


class _ByFolder:
    """Numba keeps compiled code until the file that a function is in changes. Kernels are made of those of other files of their folder, so
    theirs is kept until any of these does."""

    _py_file: str

    def get_source_stamp(self) -> tuple[tuple[str, float, int], ...]:
        files = sorted(Path(self._py_file).parent.glob("*.py"))
        return tuple((file.name, file.stat().st_mtime, file.stat().st_size) for file in files)


class Configured(_ByFolder, caching.UserProvidedCacheLocator):
    """In NUMBA_CACHE_DIR, where it is set."""


class Beside(_ByFolder, caching.InTreeCacheLocator):
    """In __pycache__."""


class OfUser(_ByFolder, caching.UserWideCacheLocator):
    """Where a user's caches are."""


if not config.CACHE_LOCATOR_CLASSES:
    config.CACHE_LOCATOR_CLASSES = ",".join(f"{__name__}.{place.__name__}" for place in (Configured, Beside, OfUser))


def kernel(function: Function, fastmath: set[str] = REORDERED) -> Function:
    """Compile at the first call, once per machine; where nothing can be written, once per process.

    A kernel may call those of its own file and of others in its folder.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for compiled code
        return njit(**options)(function)
