"""What README and docs point at is there: files of the code, functions in them, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from deploy.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|ya?ml))(?:::(\w+))?`")
COMMAND = re.compile(r"(?:^ {4,}|`)(?:\.venv/bin/)?engram (\w+)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_functions_that_a_page_names_exist(page: Path) -> None:
    gone = []
    for name, function in FILE.findall(page.read_text(encoding="utf-8")):
        path = ROOT / name
        if not path.is_file() or (
            function and f"def {function}(" not in path.read_text(encoding="utf-8")
        ):
            gone.append(f"{name}::{function}" if function else name)
    assert gone == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_a_page_names_exist(page: Path) -> None:
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert set(COMMAND.findall(page.read_text(encoding="utf-8"))) <= commands
