"""Limits and paths of a Ray that runs on this machine, for those who start one and for those who
only look."""

from __future__ import annotations

import os

from common.failures import InputError

OBJECT_STORE_BYTES = 512 * 2**20
"""Size of a local cluster's object store: a few versions of a small model's weights and the
episodes in flight. Pages cost memory only once touched."""

SOCKET = "/ray/session_2026-01-31_12-00-00_000000_4194304/sockets/plasma_store"
"""Path of a socket of Ray below its folder, at its longest: the time, and a process id."""
SOCKET_BYTES = 107


def scratch() -> tuple[str, str]:
    """The folder in which a local Ray keeps its files, as Ray chooses it, and the variable that
    names it."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "RAY_TMPDIR")
    return os.environ.get(name, "/tmp"), name


def require_short_paths() -> None:
    """Raises InputError where Ray could not make its sockets: the kernel takes SOCKET_BYTES for the
    path of one."""
    folder, variable = scratch()
    longest = len(os.fsencode(os.path.abspath(folder))) + len(SOCKET)
    if longest > SOCKET_BYTES:
        raise InputError(
            variable,
            f"{folder} is too long for the sockets of Ray, whose paths below it would have "
            f"{longest} bytes of {SOCKET_BYTES}; set RAY_TMPDIR to a shorter folder, such as /tmp",
        )
