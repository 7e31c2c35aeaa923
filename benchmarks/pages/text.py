"""Parts that all pages are put together from: results, prose, tables, shares with intervals."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

WIDTH = 100
Results = Mapping[str, Mapping[str, Any]]
"""By the name of the file, without its ending."""


def load_results(folder: Path) -> Results:
    """Every result in a folder, in the order of their names."""
    files = sorted(folder.glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def runs_of(results: Results, prefix: str) -> list[Mapping[str, Any]]:
    """Results whose names begin so, in the order of their names."""
    return [result for name, result in sorted(results.items()) if name.startswith(prefix)]


def document(*blocks: str) -> str:
    """Blocks with a blank line between them."""
    return "\n\n".join(blocks) + "\n"


def prose(text: str) -> str:
    """One paragraph, filled to the line length."""
    text = " ".join(text.split())
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def points(*texts: str) -> str:
    """A list, each point filled to the line length."""
    lines = (
        textwrap.fill(
            " ".join(text.split()),
            WIDTH,
            initial_indent="* ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for text in texts
    )
    return "\n".join(lines)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


MOST_DISTANCES = 8
"""Distances that have a row of their own."""


def distances_of(retention: Mapping[str, Any]) -> list[str]:
    """Distances of recall that are one number of turns, the nearest first."""
    return sorted(filter(str.isdigit, retention["memory"]), key=int)[:MOST_DISTANCES]


def recall_at(retention: Mapping[str, Any], distance: str) -> tuple[str, str]:
    """Recall with its 95 % interval, and recall from erased memory."""
    low, high = retention["intervals"]["memory"][distance]
    erased = retention["erased"].get(distance)
    held = f"{share(retention['memory'][distance])} ({interval(low, high)})"
    return held, "–" if erased is None else share(erased)


def measured(result: Mapping[str, Any]) -> str:
    """Command, machine, versions and commit of a result."""
    environment = result["environment"]
    versions = [f"Python {environment['python']}"] + [
        f"{name} {environment['packages'][name]}" for name in ("torch", "ray")
    ]
    return prose(f"""{origin(result)} Measured {result["date"]} on {result["machine"]};
        {", ".join(versions)}.""")


def origin(result: Mapping[str, Any]) -> str:
    """Command and commit of a result, and what its file says beside them."""
    remark = f" {result['remark']}" if "remark" in result else ""
    return f"`{result['command']}`, commit {commit(result)}.{remark}"


def commit(result: Mapping[str, Any]) -> str:
    """Short name of the commit that a result was measured at."""
    return str(result["environment"]["git_commit"])[:7]


def number(value: float) -> str:
    """A rate without decimals, a ratio with two."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def share(value: float) -> str:
    return f"{value:.3f}"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean, with the lowest and the highest where there are several."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    low, high = min(values), max(values)
    return f"{fmean(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def interval(low: float, high: float) -> str:
    """Rounded outwards: a figure with more decimals lies within it."""
    lower, upper = math.floor(round(100 * low, 6)), math.ceil(round(100 * high, 6))
    return f"{lower / 100:.2f}–{upper / 100:.2f}"
