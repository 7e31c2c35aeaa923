"""Hook of mkdocs: pages link to files of the repository that are no pages of the site (README,
benchmarks/LOG.md). There, such a link becomes its text; one to a file that is not there fails."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with each page's text. Raises FileNotFoundError naming page and link."""
    return without_outside_links(markdown, page.file.src_uri)


def without_outside_links(markdown: str, page: str) -> str:
    """page: its path below docs/."""

    def text_of(link: re.Match[str]) -> str:
        target = ROOT / "docs" / Path(page).parent / link[2]
        if not target.exists():
            raise FileNotFoundError(f"docs/{page}: {link[2]} is not there")
        return link[1]

    return OUTSIDE.sub(text_of, markdown)
