"""How many reward workers there should be, between a least and a most. Pure: no clock, no Ray."""

from __future__ import annotations

IDLE_OVER_QUEUE = 30
"""A worker is ended after so many `queue_seconds` without work. A new one costs some seconds, and
the embedding or a reward model once more, so the pause between two batches of one iteration after
another must not end what the next will start again."""


class Scaling:
    """Times are seconds of any one clock that only goes forward."""

    def __init__(self, least: int, most: int, queue_seconds: float):
        self._least, self._most, self._queue_seconds = least, most, queue_seconds
        self._last_joined = 0.0

    def wants(
        self,
        now: float,
        workers: int,
        starting: int,
        waiting_since: float | None,
        idle_since: float | None,
    ) -> int:
        """+1: start a worker. -1: end the one that is idle. 0: leave it.

        workers: all there are, dead and starting ones too; starting: those that never served yet.
        waiting_since: when the batch began to wait that has waited longest for a worker.
        idle_since: when the worker had its last batch that has been idle longest. None: there is
        none.
        """
        if starting:
            # One at a time: where the cluster has no room, ten that wait for it are no better than
            # one.
            self._last_joined = now
        elif waiting_since is not None and workers < self._most:
            # The latest must have had its time with the queue before another is called for.
            return int(now - max(waiting_since, self._last_joined) > self._queue_seconds)
        if waiting_since is None and idle_since is not None and workers > self._least:
            return -int(now - idle_since > IDLE_OVER_QUEUE * self._queue_seconds)
        return 0
