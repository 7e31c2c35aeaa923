"""The pages as a site: links lead somewhere, every page is in the navigation. `make docs` builds
it; this needs no generator."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.site_links import without_outside_links

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).replace("`", "")
        found.add(re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-"))
    return found


def broken(page: Path, text: str) -> list[str]:
    """Links of a page's text that lead nowhere. Those to other hosts are not looked at."""
    wrong = []
    for pair in LINK.findall(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)):
        link = pair[0] or pair[1]
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_seen() -> None:
    page = ROOT / "docs" / "faq.md"
    text = "[a](recal.md) [b](recall.md#nowhere) [c](#starting) [d](recall.md) [e](https://x.y/)"
    assert broken(page, text) == ["recal.md", "recall.md#nowhere"]


def places(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inner = entry.values() if isinstance(entry, dict) else entry
    return [place for each in inner for place in places(each)]


def test_every_page_stands_in_the_navigation_once() -> None:
    nav = places(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_links_out_of_the_site_become_text() -> None:
    text = "see [the log](../benchmarks/LOG.md#x) and [data](data.md)"
    assert without_outside_links(text, "faq.md") == "see the log and [data](data.md)"
    with pytest.raises(FileNotFoundError, match=r"docs/faq\.md: \.\./gone\.md is not there"):
        without_outside_links("[x](../gone.md)", "faq.md")
