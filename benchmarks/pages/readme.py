"""The table of the demo on the README's front page, between two marks."""

from __future__ import annotations

from typing import Any

from benchmarks.pages.text import Results, interval, share, table

SHOWN = ("1", "2", "3", "4", "5", "6", "8", "10", "12", "16", "all")
"""Distances that the table has columns for, of those that are asked."""
BEGIN, END = "<!-- demo table -->\n", "<!-- end of demo table -->\n"
ROWS = {
    "before_mrl": "`before mrl`",
    "after_mrl": "`after mrl`",
    "erased": "`erased`",
    "most_frequent": "`most frequent`",
}


def front_page(readme: str, results: Results) -> str:
    """The README with the table of the demo's first seed among the results. ValueError where its
    marks are not there."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README has no {BEGIN.strip()} … {END.strip()}")
    return f"{head}{BEGIN}{demo_table(results)}\n{END}{tail}"


def demo_table(results: Results) -> str:
    """Recall by distance with its controls, and how many facts it is of."""
    seeds = sorted(int(name.partition("-")[2]) for name in results if name.startswith("demo-"))
    retention: Any = results[f"demo-{seeds[0]}"]["retention"]
    measured = retention["after_mrl"]
    distances = [each for each in SHOWN if each in measured]
    rows = [
        [label, *(share(retention[name][distance]) for distance in distances)]
        for name, label in ROWS.items()
    ]
    spans = retention["intervals"]["after_mrl"]
    rows.insert(2, ["95 % interval", *(interval(*spans[distance]) for distance in distances)])
    counts = retention["counts"]["after_mrl"]
    rows.append(["facts", *(f"{counts[distance]:,}" for distance in distances)])
    return table(["turns since it was said", *distances], rows)
