"""Ports for servers that are started later, by another process."""

from __future__ import annotations

import contextlib
import random
import socket

# Below those that Linux gives to outgoing connections, and above those of Ray's workers. A port
# that was free among the former is some connection's by the time a slow server listens on it: Ray
# alone opens hundreds, and a head that cannot listen on one ends.
PORTS = range(20_000, 32_768)


def free_ports(count: int) -> list[int]:
    """Different ports that nothing listens on, on any interface of this host."""
    drawn = random.SystemRandom()
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            port = drawn.choice(PORTS)
            tried = stack.enter_context(socket.socket())
            try:
                tried.bind(("", port))
            except OSError:
                continue
            found.append(port)
        return found
