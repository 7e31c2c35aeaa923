"""Dashboards as plain values: what a panel asks, how it is answered, what is healthy and what to do
if it is not. `grafana.py` writes them as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["timeseries", "stat", "bargauge", "heatmap", "table"]
Unit = Literal[
    "short", "percentunit", "s", "bytes", "Bps", "none", "ops", "dateTimeFromNow", "tokens/s",
    "nats", "reward", "steps",
]  # fmt: skip
"""Units by Grafana's ids; words it does not know are written behind the number."""


@dataclass(frozen=True)
class Query:
    expression: str
    """As in `queries.py`."""
    legend: str
    """Name of a line, labels in double braces."""


@dataclass(frozen=True)
class Panel:
    question: str
    """Its title."""
    unit: Unit
    healthy: str
    """A sentence: what is seen in a run that is well."""
    action: str
    """A sentence: what to do if it is not."""
    runbook: str
    """Heading of the section of docs/runbook.md that says more."""
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    width: int = 8
    """Columns, of 24."""
    height: int = 8
    low: float | None = None
    high: float | None = None
    warn: float | None = None
    """From here on the panel is orange."""
    alarm: float | None = None
    """From here on the panel is red; below it, where `alarm` is below `warn`."""
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    uid: str
    """Stays the same over versions: links and bookmarks hold it."""
    title: str
    description: str
    rows: tuple[Row, ...]
    tags: tuple[str, ...] = ("engram",)

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row.panels]


def query(expression: str, legend: str = "{{run}}") -> Query:
    return Query(expression, legend)
