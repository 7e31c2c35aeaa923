"""Write the pages, and the README's table: `python -m benchmarks.pages`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.pages import (
    causal,
    feedback,
    memories,
    mrl,
    performance,
    reliability,
    results,
    reward_models,
    text_games,
    three_memories,
)
from benchmarks.pages.readme import front_page
from benchmarks.pages.text import load_results
from benchmarks.record import RESULTS

ROOT = Path(__file__).resolve().parents[2]
DOCS, README = ROOT / "docs", ROOT / "README.md"
PAGES = {
    "causal_results.md": causal.page,
    "memory_results.md": memories.page,
    "mrl_results.md": mrl.page,
    "performance.md": performance.page,
    "reliability.md": reliability.page,
    "results.md": results.page,
    "reward_models.md": reward_models.page,
    "text_games_results.md": text_games.page,
}


if __name__ == "__main__":
    measured = load_results(RESULTS)
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(measured), encoding="utf-8")
    if (chart := three_memories.picture(measured)) is not None:
        (DOCS / "pictures" / three_memories.PICTURE).write_text(chart, encoding="utf-8")
    rounds = DOCS / "feedback.md"
    rounds.write_text(feedback.with_figures(rounds.read_text("utf-8"), measured), encoding="utf-8")
    README.write_text(front_page(README.read_text("utf-8"), measured), encoding="utf-8")
