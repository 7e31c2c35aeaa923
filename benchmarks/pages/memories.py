"""docs/memory_results.md: kinds of memory on the same conversations."""

from __future__ import annotations

from benchmarks.pages import long_memory, text_memory, three_memories, window
from benchmarks.pages.text import Results, document, prose


def page(results: Results) -> str:
    return document(
        "# Memories: results",
        prose("""What models remember of conversations by the kind of their memory: the last
            interactions, a text that the model writes, the short-term memory of a Reactive
            Transformer. This page is made from `benchmarks/results/` by `python -m
            benchmarks.pages`. Machine: 2 CPU cores, no GPU."""),
        *three_memories.section(results),
        *long_memory.sections(results),
        *window.section(results),
        *text_memory.section(results),
    )
