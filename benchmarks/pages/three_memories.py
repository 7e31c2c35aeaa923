"""The part of docs/memory_results.md on memories side by side (benchmarks/three_memories.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.pages.line_chart import Line, line_chart
from benchmarks.pages.text import Results, interval, origin, points, prose, runs_of, share, table

PREFIX = "three_memories-"
NAMES = {
    "latent": "short-term memory",
    "text": "text memory",
    "window": "last interactions",
    "whole": "whole conversation",
}
DISTANCES = ("1", "2", "4", "8", "16", "31")
"""Turns since a fact was told that have a row of their own."""
PICTURE = "memories.svg"


def section(results: Results) -> list[str]:
    """Nothing where no seed was measured."""
    runs = runs_of(results, PREFIX)
    if not runs:
        return []
    return [
        "## Side by side",
        prose("""`python -m benchmarks.three_memories SEED` trains four models of 0.8 to 0.9 million
            parameters from scratch for as many seconds on the same generated conversations: a
            Reactive Transformer, and causal models with a text memory, with the last interactions
            within as many tokens, and with the whole conversation before them. The last two write a
            text memory for half of their seconds, which teaches them to copy."""),
        f"![Exact answers by distance of each memory](pictures/{PICTURE})",
        *(part for run in runs for part in _of(run)),
        points(*map(origin, runs)),
    ]


def picture(results: Results) -> str | None:
    """Exact answers by distance in the longest conversations of the first seed, as SVG."""
    runs = runs_of(results, PREFIX)
    if not runs:
        return None
    longest = runs[0]["lengths"][_longest(runs[0])]
    lines = []
    for kind, name in NAMES.items():
        exact = longest[kind]["exact"]
        known = sorted((each for each in exact if each.isdigit()), key=int)
        lines.append(Line(name, [(float(each), exact[each]) for each in known]))
    return line_chart(lines, "turns since the fact was told", "exact answers", (0.0, 1.0))


def _longest(run: Mapping[str, Any]) -> str:
    return max(run["lengths"], key=int)


def _of(run: Mapping[str, Any]) -> list[str]:
    length = _longest(run)
    kinds = {kind: run["lengths"][length][kind] for kind in NAMES}
    rows = [
        (each, *(_exact(figures, each) for figures in kinds.values()))
        for each in (*DISTANCES, "all")
        if any(each in figures["exact"] for figures in kinds.values())
    ]
    erased = [share(figures["erased"]["all"]) for figures in kinds.values()]
    return [
        prose(f"""Exact answers of seed {run["seed"]} in conversations of {length} follow-ups by
            turns since the fact was told, with 95 % intervals; erased is without memory."""),
        table(("turns", *NAMES.values()), [*rows, ("erased", *erased)]),
        prose("""Tokens that an answer costs in a conversation of so many follow-ups, read before it
            and read or generated to write memory, and milliseconds by turns:"""),
        table(("memory", *_cost_header(run)), [_cost_row(run, kind) for kind in NAMES]),
    ]


def _exact(figures: Mapping[str, Any], distance: str) -> str:
    if distance not in figures["exact"]:
        return "–"
    low, high = figures["intervals"]["exact"][distance]
    return f"{share(figures['exact'][distance])} ({interval(low, high)})"


def _cost_header(run: Mapping[str, Any]) -> list[str]:
    lengths = [f"tokens, {length}" for length in run["tokens"]["latent"]]
    return [*lengths, *(f"ms, {span}" for span in run["costs"]["latent"])]


def _cost_row(run: Mapping[str, Any], kind: str) -> list[str]:
    tokens = [f"{sum(each.values()):,.0f}" for each in run["tokens"][kind].values()]
    seconds = [f"{1000 * each['seconds']:.0f}" for each in run["costs"][kind].values()]
    return [NAMES[kind], *tokens, *seconds]
