"""Write the pages: `python -m benchmarks.pages`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.pages import performance, reliability, results
from benchmarks.pages.text import load_results
from benchmarks.record import RESULTS

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {
    "performance.md": performance.page,
    "reliability.md": reliability.page,
    "results.md": results.page,
}


if __name__ == "__main__":
    measured = load_results(RESULTS)
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(measured), encoding="utf-8")
