"""How inner loops are compiled from Python, by Numba."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from numba import njit
from numba.core import caching

Function = TypeVar("Function", bound=Callable[..., Any])

REORDERED = {"reassoc", "contract", "nsz"}
"""What sums may do to be computed in vectors. Not "nnan" or "ninf": a row that is not finite has to
show."""


class _ByFolder:
    """Numba keeps compiled code until the file that a function is in changes. Kernels are made of
    those of other files of their folder, and by the options of this file, so theirs is kept until
    any of these changes."""

    _py_file: str

    def get_source_stamp(self) -> tuple[tuple[str, float, int], ...]:
        states = [
            (file, file.stat())
            for file in [*sorted(Path(self._py_file).parent.glob("[!.]*.py")), Path(__file__)]
        ]
        return tuple((file.name, state.st_mtime, state.st_size) for file, state in states)


class _Configured(_ByFolder, caching.UserProvidedCacheLocator):
    """In NUMBA_CACHE_DIR, where it is set."""


class _Beside(_ByFolder, caching.InTreeCacheLocator):
    """In __pycache__."""


class _OfUser(_ByFolder, caching.UserWideCacheLocator):
    """Where a user's caches are."""


class _Places(caching.CompileResultCacheImpl):
    _locator_classes: ClassVar[list[type]] = [_Configured, _Beside, _OfUser]


class _Cache(caching.FunctionCache):
    _impl_class = _Places


def kernel(function: Function, fastmath: set[str] = REORDERED) -> Function:
    """Compile at the first call, once per machine; where nothing can be written, once per process.

    A kernel may call those of its own file and of others in its folder, and contains them: a call
    with arrays costs 10 ns, and one that was left to be linked would get whichever copy of it the
    process happened to load first, its own or the one inside another kernel. LLVM has optimised
    these in different surroundings, and where sums may be reordered they need not agree in the last
    bit.
    """
    compiled: Any = njit(nogil=True, error_model="numpy", fastmath=fastmath, forceinline=True)(
        function
    )
    with suppress(RuntimeError):  # no folder for compiled code
        compiled._cache = _Cache(function)  # as cache=True does, with places of our own
    return compiled
