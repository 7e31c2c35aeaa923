"""Newest values of gauges, for the exporter, and which of them are still so.

A gauge of a stage that is over is not shown. Within a stage, one without labels stays: its process
measures it again. One with labels may be of something that is gone: a worker, a component of
rewards, a distance that no conversation has any more. Nothing says so, except that rows come
without it.
"""

from __future__ import annotations

from collections.abc import Mapping

from common.telemetry.series import Cell, metric_of, parse_key

PAUSES = 3
"""A gauge with labels goes after so many times the longest pause of its metric in the stage: one
that comes with every row after three rows without it, an evaluation's after three evaluations."""
ROWS_ONCE = 100
"""Rows after which one goes whose metric was in one row alone."""


class ShownGauges:
    """The newest cell of every gauge. Rows are counted, not steps: stages differ in the steps
    between two rows."""

    def __init__(self) -> None:
        self._row, self._stage, self._step = 0, "", -1
        self._begin_stage()

    def _begin_stage(self) -> None:
        self._cells: dict[str, Cell] = {}
        self._seen: dict[str, int] = {}
        """Row of each series with labels."""
        self._metric_seen: dict[str, int] = {}
        self._pauses: dict[str, int] = {}
        """Longest number of rows from one with the metric to the next, by metric."""

    def take(self, step: int, stage: str, gauges: Mapping[str, Cell]) -> None:
        """Gauges of a row. A second call for the same step is a further part of its row."""
        if stage != self._stage:
            self._stage = stage
            self._begin_stage()
        if step != self._step:
            self._step = step
            self._row += 1
        self._cells |= gauges
        for series in gauges:
            name = parse_key(series).name
            if metric_of(name).labels:
                self._note(name, series)
        self._leave_out()

    def cells(self) -> dict[str, Cell]:
        return dict(self._cells)

    def _note(self, name: str, series: str) -> None:
        self._seen[series] = self._row
        before = self._metric_seen.get(name, self._row)
        if before < self._row:
            self._pauses[name] = max(self._row - before, self._pauses.get(name, 0))
        self._metric_seen[name] = self._row

    def _leave_out(self) -> None:
        for series, row in list(self._seen.items()):
            pause = self._pauses.get(parse_key(series).name)
            if self._row - row >= (ROWS_ONCE if pause is None else PAUSES * pause):
                del self._seen[series], self._cells[series]
