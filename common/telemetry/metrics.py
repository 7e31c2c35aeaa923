"""Recording metrics.

Any process records into its own `Metrics` and hands its `drain()` to the driver, which merges and
flushes. Invariants: the metric of two shards is the metric of the whole; a name or label that the
registry does not know is an error, not a new series.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.telemetry.gauges import ShownGauges
from common.telemetry.series import (
    Cell,
    cells_from_json,
    cells_to_json,
    combined,
    json_value,
    metric_of,
    observation,
    parse_key,
    series_of,
    values_of,
)


class Metrics:
    """Collects observations between two flushes. One per process; not for use from several threads
    at once."""

    def __init__(self) -> None:
        self._window: dict[str, Cell] = {}
        self._totals: dict[str, Cell] = {}
        self._shown = ShownGauges()

    def record(self, name: str, value: float, weight: float = 1, **labels: str | int) -> None:
        """Note one observation.

        weight: how much of the metric's denominator the value stands for (tokens, turns, …); means
        and histograms only. A weight of 0 notes nothing, so that a shard without answers need not
        be treated apart.
        """
        metric = metric_of(name)
        series = series_of(metric, labels)
        value, weight = float(value), float(weight)
        if metric.reduction != "mean" and weight != 1:
            raise ValueError(f"{name} is not a mean: it takes no weight")
        if not weight >= 0 or weight == math.inf:
            raise ValueError(f"{name} cannot have weight {weight}")
        if metric.type == "counter" and not 0 <= value < math.inf:
            raise ValueError(f"counter {name} cannot grow by {value}")
        if metric.type == "histogram" and not math.isfinite(value):
            raise ValueError(f"{name} has no bucket for {value}")
        if weight > 0:
            self._add(self._window, series, observation(metric, value, weight))

    def mean_of(self, name: str) -> tuple[float, float]:
        """(sum, weight) of a metric without labels, of the observations since the last flush or
        drain; zeros where there are none. Raises ValueError for one that is not a mean."""
        metric = metric_of(name)
        if metric.reduction != "mean" and metric.type != "histogram":
            raise ValueError(f"{name} is not a mean")
        cell = self._window.get(series_of(metric, {}))
        return (0.0, 0.0) if cell is None else (cell.total, cell.weight)

    def record_all(self, name: str, values: np.ndarray, **labels: str | int) -> None:
        """Note many observations [n] of a histogram, as `record` would one by one, at the cost of
        one."""
        metric = metric_of(name)
        series = series_of(metric, labels)
        if metric.type != "histogram":
            raise ValueError(f"{name} is not a histogram: record its observations one by one")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has no bucket for {values[~np.isfinite(values)][0]}")
        if len(values):
            places = np.searchsorted(metric.buckets, values, side="left")
            counts = np.bincount(places, minlength=len(metric.buckets) + 1).astype(float)
            lows, highs = np.full(len(counts), np.inf), np.full(len(counts), -np.inf)
            np.minimum.at(lows, places, values)
            np.maximum.at(highs, places, values)
            lows[counts == 0] = highs[counts == 0] = 0.0
            per_bucket = (tuple(figures.tolist()) for figures in (counts, lows, highs))
            self._add(
                self._window, series, Cell(float(values.sum()), float(len(values)), *per_bucket)
            )

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take in what another recorder's `state()` or `drain()` gave, as if it had been recorded
        here."""
        for series, cell in state.items():
            metric_of(parse_key(series).name)
            total, weight, *per_bucket = cell
            self._add(self._window, series, Cell(total, weight, *map(tuple, per_bucket)))

    def state(self) -> dict[str, Any]:
        """The observations since the last flush or drain, as plain values."""
        return {series: tuple(cell) for series, cell in self._window.items()}

    def drain(self) -> dict[str, Any]:
        """`state()`, and start anew: what a worker sends, so that nothing is counted twice."""
        state = self.state()
        self._window = {}
        return state

    def flush(self, step: int, stage: str) -> dict[str, Any]:
        """The row of metrics.jsonl for a step of the run; begins a new window.

        Counters are totals since the run began; all else is of the window that ends here. A value
        that is not finite becomes null, which JSON can say. A histogram gives its mean under its
        own key, and `:p50`, `:p90`, `:p95`, `:max` beside it.
        """
        gauges = {"run/step": Cell(step)}
        row: dict[str, Any] = {"step": step, "stage": stage, "time": time.time()}
        window, self._window = self._window, {}
        for series, cell in sorted(window.items()):
            metric = metric_of(parse_key(series).name)
            if metric.type == "gauge":
                gauges[series] = cell
            else:
                self._add(self._totals, series, cell)
            row |= {
                key: json_value(value, metric)
                for key, value in values_of(
                    series, metric, self._totals[series] if metric.type == "counter" else cell
                )
            }
        self._shown.take(step, stage, gauges)
        return row

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: the totals of counters and histograms, and what is not flushed yet.
        JSON."""
        return {"totals": cells_to_json(self._totals), "window": cells_to_json(self._window)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._totals, self._window = (
            cells_from_json(state["totals"]),
            cells_from_json(state["window"]),
        )

    def current(self) -> dict[str, Cell]:
        """For the exporter: totals of counters and histograms with the window so far, and the
        newest value of every gauge that is still so (`common/telemetry/gauges.py`)."""
        cells = {**self._totals, **self._shown.cells()}
        for series, cell in self._window.items():
            if metric_of(parse_key(series).name).type == "gauge":
                cells[series] = cell
            else:
                self._add(cells, series, cell)
        return cells

    @staticmethod
    def _add(cells: dict[str, Cell], series: str, cell: Cell) -> None:
        before = cells.get(series)
        cells[series] = (
            cell if before is None else combined(metric_of(series.partition("{")[0]), before, cell)
        )
