"""How inner loops are compiled from Python, by Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

REORDERED = {"reassoc", "contract", "nsz"}
"""What sums may do to be computed in vectors. Not "nnan" or "ninf": a row that is not finite has to show."""


def kernel(function: Function, fastmath: set[str] = REORDERED) -> Function:
    """Compile at the first call, once per machine; where nothing can be written, once per process.

    Compiled code is kept on disk by the date of the file that a kernel is in, not of those it calls: kernels that call each other belong
    into one file.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for compiled code
        return njit(**options)(function)
