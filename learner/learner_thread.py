"""The driver's thread that waits for its learner group inside Ray."""

from __future__ import annotations

import threading

LEARNER_THREAD = "learner-group"
"""The name of that thread."""


def waits_for_learners() -> bool:
    """Whether the thread is still waiting. A driver that leaves then must not shut Ray down: that
    frees what the thread is in, and the process dies of SIGSEGV."""
    return any(thread.name == LEARNER_THREAD for thread in threading.enumerate())
