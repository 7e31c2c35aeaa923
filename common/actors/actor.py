"""The base class of actors in an `ActorPool`. It is apart from the pool so that actors do not
import RLlib.

Exceptions are judged inside the actor, where they still have their type (Ray re-pickles what
crosses it), and travel back as
values: a bad input must not look like a sick actor.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.failures import InfraFailure, Unavailable


@dataclass(frozen=True, slots=True)
class RemoteFailure:
    """An application exception as a value. infra: try elsewhere; otherwise the input is to blame
    (unknown causes too).

    unavailable: the exception itself, where trying elsewhere would not help.
    """

    infra: bool
    kind: str
    message: str
    traceback: str
    unavailable: Unavailable | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class Invoke:
    """Calls a method by name with positional arguments that arrive as keywords `_0, _1, …`.

    The actor manager passes keywords only, and Ray resolves an ObjectRef only where it is an
    argument by itself.
    """

    def __init__(self, method: str):
        self.method = method

    def __call__(self, actor: Any, **arguments: Any) -> Any:
        return getattr(actor, self.method)(*(arguments[f"_{i}"] for i in range(len(arguments))))

    @staticmethod
    def keywords(arguments: tuple[Any, ...]) -> dict[str, Any]:
        return {f"_{i}": argument for i, argument in enumerate(arguments)}


class PooledActor:
    """Base of the actor classes of a pool."""

    def ping(self) -> str:
        return "pong"

    def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """func(self, …), or a `RemoteFailure` where it raised."""
        try:
            return func(self, *args, **kwargs)
        # The door between the actor and its callers: whatever the application raises leaves here as
        # a typed value with its traceback.
        except Exception as error:  # noqa: BLE001
            unavailable = error if isinstance(error, Unavailable) else None
            return RemoteFailure(
                isinstance(error, InfraFailure),
                type(error).__name__,
                str(error),
                traceback.format_exc(),
                unavailable,
            )
