"""The one way to call an actor outside a pool: with a deadline, a reason, and failures that have a
type."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from common.failures import DataFailure, DeadlineExceeded, EngramError, InfraFailure

WAIT_SECONDS = 0.5
"""Between two calls of `on_wait`."""


def find(name: str, namespace: str) -> ActorHandle:
    """The actor of this name. Raises InfraFailure where there is none (any more)."""
    try:
        return ray.get_actor(name, namespace=namespace)
    except (ValueError, RayError) as missing:
        raise InfraFailure(f"there is no actor {name}: {missing}") from missing


def ask(
    handle: ActorHandle,
    method: str,
    *args: Any,
    deadline: float,
    reason: str,
    on_wait: Callable[[], None] | None = None,
) -> Any:
    """Result of `method(*args)` on an actor.

    deadline: seconds. reason: the actor and what it is asked for, for messages. on_wait: called
    time and again while the result is awaited.
    Raises DeadlineExceeded; InfraFailure where the actor is dead or cannot be reached; an
    EngramError of the method as it was raised; DataFailure, with the actor's traceback as a note,
    for any other exception of it.
    """
    return fetch(
        getattr(handle, method).remote(*args), deadline=deadline, reason=reason, on_wait=on_wait
    )


def fetch(
    references: ray.ObjectRef | Sequence[ray.ObjectRef],
    *,
    deadline: float,
    reason: str,
    on_wait: Callable[[], None] | None = None,
) -> Any:
    """The objects behind references, within one deadline. Raises as `ask` does."""
    until = time.monotonic() + deadline
    try:
        if on_wait is not None:
            _wait(references, until, on_wait)
        return ray.get(references, timeout=max(0.0, until - time.monotonic()))
    except GetTimeoutError as late:
        raise DeadlineExceeded(reason, deadline) from late
    except RayTaskError as raised:
        # Ray's wrapper only repeats the traceback of the exception itself.
        if isinstance(raised.cause, EngramError):
            raise raised.cause from raised
        if isinstance(raised.cause, RayError):
            raise InfraFailure(f"{reason}: {type(raised.cause).__name__}") from raised
        cause = raised.cause
        failure = DataFailure(f"{reason}: {type(cause).__name__}: {cause}")
        failure.add_note(str(raised))
        raise failure from raised
    except RayError as lost:
        raise InfraFailure(f"lost while waiting for {reason}: {lost}") from lost


def _wait(
    references: ray.ObjectRef | Sequence[ray.ObjectRef], until: float, on_wait: Callable[[], None]
) -> None:
    """Return when all are there, or at `until`."""
    left = list(references) if isinstance(references, Sequence) else [references]
    while left and time.monotonic() < until:
        _, left = ray.wait(left, num_returns=len(left), timeout=WAIT_SECONDS)
        if left:
            on_wait()
