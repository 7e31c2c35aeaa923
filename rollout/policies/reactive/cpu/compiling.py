"""How kernels are compiled from Python, by Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

from common.storage.kernel_cache import keep_compiled

Function = TypeVar("Function", bound=Callable[..., Any])

REORDERED = {"reassoc", "contract", "nsz"}
"""Liberties that let sums be computed in vectors. Not "nnan" or "ninf": a row that is not finite
has to show."""


def kernel(function: Function, fastmath: set[str] = REORDERED) -> Function:
    """Compile at the first call, unless a process on this machine has (`keep_compiled`).

    A kernel contains the kernels that it calls (`forceinline`). A call that is left to the linker
    gets whichever copy of the callee the process loaded first, and copies that LLVM optimised in
    different callers need not agree in the last bit where sums may be reordered.
    """
    options: dict[str, Any] = dict(
        nogil=True, error_model="numpy", fastmath=fastmath, forceinline=True
    )
    compiled: Function = keep_compiled(njit(**options)(function))
    return compiled
