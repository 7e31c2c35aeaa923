"""How kernels are compiled from Python, by Numba."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from numba import config, njit

from common.storage.kernel_cache import keep_compiled

Function = TypeVar("Function", bound=Callable[..., Any])

REORDERED = {"reassoc", "contract", "nsz"}
"""Liberties that let sums be computed in vectors. Not "nnan" or "ninf": a row that is not finite
has to show."""


def _cache_folder() -> str:
    """Where compiled code is kept between processes; "" where nothing can be written.

    Numba compiles a function again when the file it is in changes. Kernels contain kernels of other
    files of this folder, so each version of the folder has a cache of its own.
    """
    here, digest = Path(__file__).parent, hashlib.blake2b(digest_size=8)
    for file in sorted(here.glob("[!.]*.py")):
        digest.update(file.read_bytes())
    for base in (config.CACHE_DIR or here / "__pycache__", Path.home() / ".cache" / "engram"):
        folder = Path(base) / f"kernels-{digest.hexdigest()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return str(folder)
    return ""


_CACHE = _cache_folder()


def kernel(function: Function, fastmath: set[str] = REORDERED) -> Function:
    """Compile at the first call, once per machine; where nothing can be written, once per process.

    A kernel contains the kernels that it calls (`forceinline`). A call that is left to the linker
    gets whichever copy of the callee the process loaded first, and copies that LLVM optimised in
    different callers need not agree in the last bit where sums may be reordered.
    """
    options: dict[str, Any] = dict(
        nogil=True, error_model="numpy", fastmath=fastmath, forceinline=True
    )
    compiled: Function = njit(**options)(function)
    if not _CACHE:
        return compiled
    # Numba asks for the folder when the cache is made; functions of others keep theirs.
    before, config.CACHE_DIR = config.CACHE_DIR, _CACHE
    try:
        keep_compiled(compiled)
    finally:
        config.CACHE_DIR = before
    return compiled
