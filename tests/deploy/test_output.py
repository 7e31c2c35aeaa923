"""One way to print: a module that prints otherwise lets foreign text through."""

from __future__ import annotations

import re
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
OTHERWISE = re.compile(r"typer\.(?:s?echo)\(|\bprint_exc\(|(?<![\w.])print\(")
GENERATES = {"reference.py"}
"""Pages of the documentation, of engram's own text."""


def test_every_command_prints_through_one_function() -> None:
    found = [
        file.name
        for file in sorted(DEPLOY.rglob("*.py"))
        if file.name not in GENERATES and OTHERWISE.search(file.read_text(encoding="utf-8"))
    ]
    assert found == []
