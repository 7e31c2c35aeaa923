"""Printing, for every command: all of it goes through `echo` or a table of rich whose cells are
`printable`, since names, rows, answers and messages are foreign text."""

from __future__ import annotations

import sys
import traceback

from common.text.printable import printable


def echo(text: str) -> None:
    """A line or more on standard output, a command's result."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def tell(text: str) -> None:
    """A line or more on standard error, beside the result."""
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()


def tell_traceback() -> None:
    """The traceback of the exception that is being handled, on standard error."""
    tell(traceback.format_exc().rstrip("\n"))
