"""`python -m deploy …`: the command line where only the source folder is there, as in a submitted job; and what `engram` calls."""

from __future__ import annotations

import sys

from learner.interrupts import counted

RESUMABLE = ("train", "demo")
"""Commands that an interrupt ends with 75, whenever it comes."""


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in RESUMABLE:
        with counted():  # before the import, which takes a moment: the command looks at the count when it begins
            run()
    run()


def run() -> None:
    from deploy.cli import main as command

    command()


if __name__ == "__main__":
    main()
