"""Sections of docs/runbook.md, as dashboards and alerts point at them."""

from __future__ import annotations

import re
from pathlib import Path

from common.failures import InputError, nearest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "runbook.md"
BASE = "docs/runbook.md"
"""The page in the repository. Who publishes the documentation gives its address instead
(`python -m deploy.monitoring --runbook URL`); then panels link to it."""


def sections() -> list[str]:
    """Headings of the page's sections, in order."""
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(r"^## (.+)$", text, re.MULTILINE)


def anchor(heading: str) -> str:
    """As pages of Markdown make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def is_url(base: str) -> bool:
    return base.startswith(("http://", "https://"))


def section_url(where: str, heading: str, base: str = BASE) -> str:
    """The address of a section; InputError at `where` for one that the page does not have."""
    known = sections()
    if heading not in known:
        raise InputError(where, f"docs/runbook.md has no {heading!r}; {nearest(heading, known)}")
    return f"{base}#{anchor(heading)}"
