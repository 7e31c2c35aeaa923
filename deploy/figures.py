"""Figures of an evaluation as tables, of summary.json and of `engram eval` alike.

Below a row of figures stand its 95 % intervals, and what the figures are of: how many facts,
questions or answers. Rows that are of the same say so once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from deploy.layout import table

INTERVAL = "  95 %"
MOST_COLUMNS = 12
"""Columns of a table of figures; what has more keys goes on in another one."""
LAST = ("all", "total")
"""Keys that are over all others."""

RECALLS = ("before_mrl", "after_mrl", "memory", "carried", "training", "erased", "most_frequent")
"""Rows of a table with one row per evaluation or control, those that there are."""
FACTS = {
    "exact": ("exact answers", "questions"),
    "precision": ("precision of values named", "values named"),
    "changed": ("recall of changed facts", "facts"),
    "outdated": ("answers with the outdated value", "questions"),
}
"""Figures of facts beside recall: label, and what they are of."""
BY_ORDER = "Recall by the order in which a conversation told its facts"
HELD = "Recall by how many turns had told something that still held"
MATCH = {"exact_match": "exact match", "f1": "word F1"}


class Line(NamedTuple):
    """One row of figures by key."""

    label: str
    shares: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]
    counts: Mapping[str, int]
    of: str
    """Name of the things that are counted."""


def figure_tables(result: Mapping[str, Any]) -> list[str]:
    """All tables of figures that summary.json, or the result of `engram eval`, has something
    for."""
    tables = [table for each in other_figures(result).items() for table in share_tables(*each)]
    return [*recall_table(result), *tables, *cost_tables(result)]


def main_tables(result: Mapping[str, Any]) -> list[str]:
    """Recall by distance, and one table of all other figures over all distances and turns."""
    tables = other_figures(result)
    for title in (BY_ORDER, HELD):
        tables.pop(title, None)  # over all keys it is recall again
    lines = [line for lines in tables.values() for line in lines]
    others = overall_table("Other figures, over all turns", lines)
    return [*recall_table(result), *others, *cost_tables(result)]


def recall_table(result: Mapping[str, Any]) -> list[str]:
    """Recall by distance with its controls; empty where nothing was asked."""
    retention = result.get("retention", {})
    lines = _lines(retention, _beside(retention), "facts")
    return share_tables("Recall by turns since the value was last said", lines) if lines else []


def cost_tables(result: Mapping[str, Any]) -> list[str]:
    """The time that a turn of long conversations took; empty where none was long."""
    cost = result.get("cost")
    if not cost:
        return []
    keys = sorted(cost["seconds"], key=_in_order)
    rows = [
        ["milliseconds a turn", *(f"{1000 * cost['seconds'][key]:.3g}" for key in keys)],
        ["  turns", *(f"{cost['turns'][key]:,}" for key in keys)],
    ]
    title = "Time of a turn, by its number in the conversation, many being played at once"
    return [table(title, ["", *keys], rows)]


def other_figures(result: Mapping[str, Any]) -> dict[str, list[Line]]:
    """Lines by the title of their table: figures of facts, agreement with references and rewards,
    those that there are."""
    retention, match = result.get("retention", {}), result.get("match", {})
    scores = result.get("scores", {})
    tables = {
        "Other figures by turns since the value was last said": [
            line
            for name, (label, of) in FACTS.items()
            for line in _figure_lines(label, of, name, retention)
        ],
        BY_ORDER: _figure_lines("recall", "facts", "by_order", retention),
        HELD: _figure_lines("recall", "facts", "held", retention),
        "Agreement with the reference by turn of the conversation": [
            line
            for name, label in MATCH.items()
            for line in _lines(match.get(name, {}), _beside(match, name), "answers", f"{label}, ")
        ],
        "Mean reward per answer by component, before its weight": _lines(
            scores, _beside(scores), "answers", "mean reward, "
        ),
    }
    return {title: lines for title, lines in tables.items() if lines}


Beside = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Intervals and counts under the names of the figures that they belong to."""


def _beside(section: Mapping[str, Any], *names: str) -> Beside:
    found: list[Mapping[str, Any]] = []
    for key in ("intervals", "counts"):
        held: Mapping[str, Any] = section.get(key, {})
        for name in names:
            held = held.get(name, {})
        found.append(held)
    return found[0], found[1]


def _lines(shares: Mapping[str, Any], beside: Beside, of: str, before: str = "") -> list[Line]:
    """A line for each evaluation or control that has figures."""
    intervals, counts = beside
    return [
        Line(
            before + name.replace("_", " "),
            shares[name],
            intervals.get(name, {}),
            counts.get(name, {}),
            of,
        )
        for name in RECALLS
        if shares.get(name)
    ]


def _figure_lines(label: str, of: str, name: str, retention: Mapping[str, Any]) -> list[Line]:
    """The lines of one figure: one, or in a summary one before and one after MRL."""
    figure: Mapping[str, Any] = retention.get(name) or {}
    intervals, counts = _beside(retention, name)
    if any(isinstance(value, Mapping) for value in figure.values()):
        return _lines(figure, (intervals, counts), of, f"{label}, ")
    return [Line(label, figure, intervals, counts, of)] if figure else []


def share_tables(title: str, lines: Sequence[Line]) -> list[str]:
    """Shares by key, in as many tables as they need; a key that a line lacks shows as "-"."""
    keys = sorted({key for line in lines for key in line.shares}, key=_in_order)
    last = [key for key in keys if key in LAST]
    first = [key for key in keys if key not in LAST]
    room = MOST_COLUMNS - len(last)
    tables = [_share_table(title, lines, [*first[:room], *last])]
    for start in range(room, len(first), MOST_COLUMNS):
        # What is over all keys stands in the first table.
        columns = first[start : start + MOST_COLUMNS]
        tables.append(_share_table(f"{title}, from {columns[0]} on", lines, columns))
    return tables


def _share_table(title: str, lines: Sequence[Line], columns: Sequence[str]) -> str:
    lines = [line for line in lines if any(key in line.shares for key in columns)]
    rows = []
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        figures = (f"{line.shares[key]:.3f}" if key in line.shares else "-" for key in columns)
        rows.append([line.label, *figures])
        if line.intervals:
            rows.append([INTERVAL, *(_span(line.intervals.get(key)) for key in columns)])
        same = following is not None and (following.counts, following.of) == (line.counts, line.of)
        if line.counts and not same:
            counted = (f"{line.counts[key]:,}" if key in line.counts else "" for key in columns)
            rows.append([f"  {line.of}", *counted])
    return table(title, ["", *columns], rows)


def overall_table(title: str, lines: Sequence[Line]) -> list[str]:
    """Figures over all keys, a column for each evaluation or control; empty where there is none.
    Figures of one evaluation alone have a column without a name."""
    named: dict[str, dict[str, Line]] = {}
    for line in lines:
        if any(key in line.shares for key in LAST):
            figure, _, evaluation = line.label.partition(", ")
            named.setdefault(figure, {})[evaluation] = line
    found = {evaluation for of_figure in named.values() for evaluation in of_figure}
    columns = [
        name for name in ("", *(each.replace("_", " ") for each in RECALLS)) if name in found
    ]
    rows = []
    for figure, of_figure in named.items():
        cells = [_over_all(of_figure.get(column)) for column in columns]
        line = next(iter(of_figure.values()))
        count = next((line.counts[key] for key in LAST if key in line.counts), None)
        of = "" if count is None else f"{count:,} {line.of}"
        rows += [[figure, *(share for share, _ in cells), of]]
        if any(span for _, span in cells):
            rows += [[INTERVAL, *(span for _, span in cells), ""]]
    return [table(title, ["", *columns, "of"], rows)] if rows else []


def _over_all(line: Line | None) -> tuple[str, str]:
    """The figure over all keys and its interval, as a cell each."""
    if line is None:
        return "-", ""
    key = next(key for key in LAST if key in line.shares)
    # Three digits, as the figure has: it must not seem to lie outside.
    return f"{line.shares[key]:.3f}", _span(line.intervals.get(key), digits=3)


def _span(interval: Sequence[float] | None, digits: int = 2) -> str:
    return "" if interval is None else f"{interval[0]:.{digits}f}–{interval[1]:.{digits}f}"


def _in_order(key: str) -> tuple[bool, int, str]:
    first = key.partition("-")[0]
    return key in LAST, int(first) if first.isdecimal() else 0, key
