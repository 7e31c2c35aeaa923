"""Groups of commands, as typer runs them."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from common.failures import EXIT_FAILED
from deploy.output import tell_traceback


class DefaultGroup(TyperGroup):
    """Group whose first command runs where the first word names none."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


class CommandGroup(TyperGroup):
    """Group whose commands end with a traceback on an EOFError: click takes it for Ctrl-D at a
    prompt and says nothing but "Aborted."."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError:
            tell_traceback()
            raise SystemExit(EXIT_FAILED) from None
