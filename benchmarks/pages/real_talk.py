"""The part of docs/results.md on real conversations (benchmarks/real_talk.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages.text import Results, interval, origin, prose, runs_of, share, table

SGD, PERSONA = "real_talk_sgd-", "real_talk_persona-"
DISTANCES = ("1", "2", "3", "4", "all")
SHARES = {
    "memory": "memory",
    "erased": "erased",
    "most_frequent": "most frequent",
    "exact": "exact answers",
    "precision": "precision of values named",
}


def section(results: Results) -> list[str]:
    """Nothing of what was not measured."""
    return [
        *(part for run in runs_of(results, SGD) for part in _sgd(run)),
        *_persona(runs_of(results, PERSONA)),
    ]


def _sgd(run: Mapping[str, Any]) -> list[str]:
    retention = run["retention"]
    low, high = retention["intervals"]["memory"]["all"]
    rows = [
        (name, *(share(retention[key][at]) if at in retention[key] else "–" for at in DISTANCES))
        for key, name in SHARES.items()
    ]
    return [
        "## Schema-Guided Dialogue",
        prose(f"""{origin(run)} {run["wall_seconds"] / 60:.0f} minutes, nearly all on one of two
            cores. Recall of confirmed values by distance, on {run["conversations"]:,} conversations
            of the dev file, which nothing was chosen by; over all
            {share(retention["memory"]["all"])} ({interval(low, high)})."""),
        table(("", *DISTANCES), rows),
    ]


def _persona(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    if not runs:
        return []
    rows = []
    for run in runs:
        retention = run["retention"]
        cells = [str(run["seed"])]
        for key in ("memory", "erased"):
            low, high = retention["intervals"][key]["all"]
            cells.append(f"{share(retention[key]['all'])} ({interval(low, high)})")
        rows.append((*cells, share(retention["exact"]["all"])))
    return [
        "## Chats with a persona",
        prose(f"""{origin(runs[0])} Lines of the answering side's persona are told first; an answer
            that uses one recalls it ([data.md](data.md#persona-chats)). Held-out
            conversations: {runs[0]["conversations"]:,}, with 95 % intervals."""),
        table(("seed", "memory", "erased", "exact answers"), rows),
    ]
