"""The group of all commands, as typer runs it."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from common.failures import EXIT_FAILED
from deploy.output import tell_traceback


class CommandGroup(TyperGroup):
    """Group whose commands end with a traceback on an EOFError: click takes it for Ctrl-D at a
    prompt and says nothing but "Aborted."."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError:
            tell_traceback()
            raise SystemExit(EXIT_FAILED) from None
