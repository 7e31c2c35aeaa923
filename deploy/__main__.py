"""`python -m deploy …`: the command line where only the source folder is there, as in a submitted
job; and what `engram` calls."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

from common.failures import EXIT_BAD_INPUT, EXIT_DRAINED
from common.text.printable import print_anything
from learner.interrupts import SIGNALS, counted
from learner.learner_thread import waits_for_learners

RESUMABLE = ("train", "demo")
"""Commands that an interrupt ends with 75, whenever it comes."""


def main() -> None:
    """The process's entry: never returns, ends with the exit code of what happened."""
    for stream in (sys.stdout, sys.stderr):
        print_anything(stream)
    code = resumable() if sys.argv[1:2] and sys.argv[1] in RESUMABLE else run()
    ignore_interrupts()
    if waits_for_learners():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(code)  # `exit` would shut Ray down
    sys.exit(code)


def resumable() -> int:
    ignore_interrupts()  # what `counted` puts back when the command is over
    try:
        with (
            counted()
        ):  # before the import, which takes a moment: the command looks at the count when it begins
            return run()
    except KeyboardInterrupt:  # a second one, before or after the command could take it
        sys.stderr.write("engram: stopped; the same command goes on from there\n")
        return EXIT_DRAINED


def run() -> int:
    try:
        from deploy.cli import run_command
    except ModuleNotFoundError as missing:
        # A job runs the `python` that its head node finds, which may be another than Ray's own.
        sys.stderr.write(
            f"engram: {sys.executable} has no package {missing.name}, so it is not the Python that "
            "engram's dependencies are installed for: start Ray's nodes with that environment "
            "active (source .venv/bin/activate, then ray start), or install them for this one\n"
        )
        return EXIT_BAD_INPUT
    return run_command(sys.argv[1:])


def ignore_interrupts() -> None:
    """Once the command is over, what interrupts the interpreter's end must not give it another exit
    code, and neither must an earlier interrupt."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # One that passed through the exec of a text, as happens in imports, makes `python -m` end by
    # SIGINT, caught or not. It is forgotten where another one is executed (CPython,
    # _Py_UnhandledKeyboardInterrupt).
    exec("")


if __name__ == "__main__":
    main()
