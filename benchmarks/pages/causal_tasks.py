"""docs/causal_tasks_results.md: causal language models that play games and remember."""

from __future__ import annotations

from benchmarks.pages import text_games, text_memory, window
from benchmarks.pages.text import Results, document, prose


def page(results: Results) -> str:
    return document(
        "# Causal language models on games and conversations: results",
        prose("""What small causal language models learn of text games, and what they remember of
            conversations. This page is made from `benchmarks/results/` by `python -m
            benchmarks.pages`. What reinforcement learning gains on single prompts is in
            [causal_results.md](causal_results.md)."""),
        *text_games.section(results),
        *window.section(results),
        *text_memory.section(results),
    )
