"""Recording metrics, writing them to RUN/metrics.jsonl, and showing them to Prometheus.

Any process records into its own `Metrics` and hands its `drain()` to the driver, which merges and
flushes. Invariants: the metric of two shards is the metric of the whole (a mean is carried as a
weighted sum until it is read); no step stands twice in metrics.jsonl; a name or label that the
registry does not know is an error, not a new series.

A series is written as `name` or `name{label=value,…}`, labels in the registry's order, `cohort=all`
left out.
"""

from __future__ import annotations

import bisect
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from common.failures import InputError, nearest
from common.storage.run_directory import RunDirectory
from common.telemetry.registry import COHORTS, REGISTRY, Metric

METRICS_FILE = "metrics.jsonl"
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95}
_RESERVED = re.compile(r"[{},=:\n\"]")
_KEY = re.compile(r"(?P<name>[^{}:]+)(?:\{(?P<labels>[^{}]*)\})?(?::(?P<statistic>\w+))?")


class Key(NamedTuple):
    """A key of a row of metrics.jsonl, taken apart."""

    name: str
    labels: dict[str, str]
    statistic: str
    """"" for the value itself (a histogram's mean); p50, p90, p95 or max of a histogram."""


def parse_key(key: str) -> Key:
    """`reward/component{component=bleu}` -> ("reward/component", {"component": "bleu"}, "")."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise ValueError(f"{key!r} is not the key of a metric")
    pairs = [pair.split("=", 1) for pair in (match["labels"] or "").split(",") if pair]
    return Key(match["name"], dict(pairs), match["statistic"] or "")


class _Cell(NamedTuple):
    """What is known of one series: enough to merge it with another cell without loss."""

    total: float
    """Sum, weighted sum (mean, histogram), maximum, or the last value."""
    weight: float = 0.0
    """Amount of the denominator (mean, histogram); when it was recorded, in ns (last)."""
    counts: tuple[float, ...] = ()
    """Weight per bucket, the unbounded one last (histogram)."""
    lows: tuple[float, ...] = ()
    """Smallest value seen per bucket, 0 in an empty one (histogram)."""
    highs: tuple[float, ...] = ()
    """Largest value seen per bucket, 0 in an empty one (histogram)."""


class Metrics:
    """Collects observations between two flushes. One per process; not for use from several threads
    at once."""

    def __init__(self) -> None:
        self._window: dict[str, _Cell] = {}
        self._totals: dict[str, _Cell] = {}
        self._shown: dict[str, _Cell] = {}
        self._stage = ""

    def record(self, name: str, value: float, weight: float = 1, **labels: str | int) -> None:
        """Note one observation.

        weight: how much of the metric's denominator the value stands for (tokens, turns, …); means
        and histograms only. A weight of 0 notes nothing, so that a shard without answers need not
        be treated apart.
        """
        metric = _metric(name)
        series = _series(metric, labels)
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
            self._add(self._window, series, _observation(metric, value, weight))

    def record_all(self, name: str, values: np.ndarray, **labels: str | int) -> None:
        """Note many observations [n] of a histogram, as `record` would one by one, at the cost of
        one."""
        metric = _metric(name)
        series = _series(metric, labels)
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
                self._window, series, _Cell(float(values.sum()), float(len(values)), *per_bucket)
            )

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take in what another recorder's `state()` or `drain()` gave, as if it had been recorded
        here."""
        for series, cell in state.items():
            _metric(parse_key(series).name)
            total, weight, *per_bucket = cell
            self._add(self._window, series, _Cell(total, weight, *map(tuple, per_bucket)))

    def state(self) -> dict[str, Any]:
        """What was recorded since the last flush or drain, as plain values."""
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
        if stage != self._stage:
            # A gauge of a stage that is over must not be shown as if it were still so.
            self._shown, self._stage = {}, stage
        self._shown["run/step"] = _Cell(step)
        row: dict[str, Any] = {"step": step, "stage": stage, "time": time.time()}
        window, self._window = self._window, {}
        for series, cell in sorted(window.items()):
            metric = _metric(parse_key(series).name)
            if metric.type == "gauge":
                self._shown[series] = cell
            else:
                self._add(self._totals, series, cell)
            row |= {
                key: _json(value, metric)
                for key, value in _values(
                    series, metric, self._totals[series] if metric.type == "counter" else cell
                )
            }
        return row

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: the totals of counters and histograms, and what is not flushed yet.
        JSON."""
        return {"totals": _to_json(self._totals), "window": _to_json(self._window)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._totals, self._window = _from_json(state["totals"]), _from_json(state["window"])

    def current(self) -> dict[str, _Cell]:
        """For the exporter: totals of counters and histograms with the window so far, and the
        newest value of every gauge."""
        cells = {**self._totals, **self._shown}
        for series, cell in self._window.items():
            if _metric(parse_key(series).name).type == "gauge":
                cells[series] = cell
            else:
                self._add(cells, series, cell)
        return cells

    @staticmethod
    def _add(cells: dict[str, _Cell], series: str, cell: _Cell) -> None:
        before = cells.get(series)
        cells[series] = (
            cell if before is None else _combine(_metric(series.partition("{")[0]), before, cell)
        )


class MetricsWriter:
    """Appends rows to RUN/metrics.jsonl, each durable before the next begins."""

    def __init__(self, run: RunDirectory, resumed_step: int | None = None):
        """Continue the file of a run resumed at a step: rows past it, and a torn last line, are
        removed; None begins anew."""
        self.run = run
        kept = (
            []
            if resumed_step is None
            else [row for row in read_rows(run) if row["step"] <= resumed_step]
        )
        self.last_step: int = kept[-1]["step"] if kept else -1
        """Step of the newest row, -1 where there is none."""
        self._write_anew(kept)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append what `Metrics.flush` gave. Steps count over the whole run and only grow."""
        if row["step"] <= self.last_step:
            raise ValueError(f"metrics of step {row['step']} after those of step {self.last_step}")
        self.run.append_line(METRICS_FILE, _line(row))
        self.last_step = row["step"]

    def add(self, row: Mapping[str, Any]) -> None:
        """Lay what `Metrics.flush` gave over the newest row where that is of the same step, so that
        no step has two; else append it."""
        rows = read_rows(self.run)
        if rows and rows[-1]["step"] == row["step"]:
            self._write_anew(
                [*rows[:-1], {**rows[-1], **row, "time": rows[-1].get("time", row["time"])}]
            )
        else:
            self.write(row)

    def _write_anew(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.run.write_text(METRICS_FILE, "".join(_line(row) + "\n" for row in rows))


def read_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """Rows of RUN/metrics.jsonl; a last line torn by a crash is left out, a broken one before it is
    an InputError."""
    if not run.exists(METRICS_FILE):
        return []
    lines = run.filesystem.cat_file(run.inner(METRICS_FILE)).removesuffix(b"\n").split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("no row of metrics, which is a mapping with a step")
        except ValueError as broken:
            if number == len(lines):
                break
            raise InputError(
                f"{run.path(METRICS_FILE)}:{number}",
                f"is not JSON of a row ({broken}); remove or mend the line",
            ) from broken
        rows.append(row)
    return rows


class PrometheusExporter(Collector):
    """Serves what was last published on http://host:port/metrics, with the label `run` on every
    series."""

    def __init__(self, host: str, port: int, run: str):
        """port 0 takes any free one; see `port`. InputError where the address cannot be had."""
        self.run = run
        self._cells: dict[str, _Cell] = {}
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as taken:
            raise InputError(
                "metrics.port", f"cannot listen on {host}:{port}: {taken.strerror}"
            ) from taken
        self.port: int = self._server.server_port
        self.url = f"http://{host}:{self.port}/metrics"

    def publish(self, metrics: Metrics) -> None:
        """Show the state of `metrics` from now on. Call it from the thread that records."""
        self._cells = metrics.current()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Family]:
        """Called by the server's thread; `publish` swaps the whole dictionary, so one scrape is of
        one moment."""
        grouped: dict[str, list[tuple[dict[str, str], _Cell]]] = {}
        for series, cell in self._cells.items():
            key = parse_key(series)
            grouped.setdefault(key.name, []).append((key.labels, cell))
        for metric in REGISTRY.values():
            # An unlabelled counter is there from the start: an alert on a series that is missing
            # never fires.
            empty: list[tuple[dict[str, str], _Cell]] = (
                [({}, _Cell(0.0))] if metric.type == "counter" and not metric.labels else []
            )
            if samples := grouped.get(metric.name, empty):
                yield _family(metric, self.run, samples)


# --- one series -----------------------------------------------------------------------------------


def _metric(name: str) -> Metric:
    metric = REGISTRY.get(name)
    if metric is None:
        raise ValueError(f"no metric {name!r}; {nearest(name, REGISTRY)}")
    return metric


def _series(metric: Metric, labels: Mapping[str, str | int]) -> str:
    given = {"cohort": "all", **labels} if "cohort" in metric.labels else labels
    if unknown := given.keys() - set(metric.labels):
        word = sorted(unknown)[0]
        valid = nearest(word, metric.labels) if metric.labels else "it takes none"
        raise ValueError(f"{metric.name} has no label {word!r}; {valid}")
    if missing := set(metric.labels) - given.keys():
        raise ValueError(f"{metric.name} needs the label {sorted(missing)[0]!r}")
    parts = []
    for label in metric.labels:
        value = str(given[label])
        if not value or _RESERVED.search(value):
            raise ValueError(f"{metric.name}: label {label} cannot be {value!r}")
        if label == "cohort" and value not in COHORTS:
            raise ValueError(f"{metric.name}: no cohort {value!r}; {nearest(value, COHORTS)}")
        if (label, value) != ("cohort", "all"):
            parts.append(f"{label}={value}")
    return f"{metric.name}{{{','.join(parts)}}}" if parts else metric.name


def _observation(metric: Metric, value: float, weight: float) -> _Cell:
    if metric.type == "histogram":
        place, buckets = bisect.bisect_left(metric.buckets, value), len(metric.buckets) + 1
        counts, at = [0.0] * buckets, [0.0] * buckets
        counts[place], at[place] = weight, value
        return _Cell(value * weight, weight, tuple(counts), tuple(at), tuple(at))
    if metric.reduction == "mean":
        return _Cell(value * weight, weight)
    return _Cell(value, float(time.time_ns()) if metric.reduction == "last" else 0.0)


def _combine(metric: Metric, a: _Cell, b: _Cell) -> _Cell:
    if metric.reduction == "max":
        return (
            a
            if math.isnan(a.total)
            else _Cell(b.total if math.isnan(b.total) else max(a.total, b.total))
        )
    if metric.reduction == "last":
        return a if a.weight > b.weight else b
    return _Cell(
        a.total + b.total,
        a.weight + b.weight,
        tuple(x + y for x, y in zip(a.counts, b.counts, strict=True)),
        _extremes(a, b, a.lows, b.lows, min),
        _extremes(a, b, a.highs, b.highs, max),
    )


def _extremes(
    a: _Cell,
    b: _Cell,
    of_a: Iterable[float],
    of_b: Iterable[float],
    choose: Callable[[float, float], float],
) -> tuple[float, ...]:
    """Per bucket, of two cells: an empty bucket has no say."""
    buckets = zip(a.counts, b.counts, of_a, of_b, strict=True)
    return tuple(choose(x, y) if m and n else x if m else y for m, n, x, y in buckets)


def _values(series: str, metric: Metric, cell: _Cell) -> Iterator[tuple[str, float]]:
    yield series, cell.total / cell.weight if metric.reduction == "mean" else cell.total
    if metric.type == "histogram":
        for statistic, share in QUANTILES.items():
            yield f"{series}:{statistic}", _quantile(cell, share)
        yield f"{series}:max", _quantile(cell, 1.0)


def _quantile(cell: _Cell, share: float) -> float:
    """Within the bucket that holds it, as if its values lay evenly between the smallest and the
    largest of them.

    So it is exact where a bucket holds one value however often, and never outside of what was seen.
    """
    below, wanted, last = 0.0, share * cell.weight, 0.0
    for count, low, high in zip(cell.counts, cell.lows, cell.highs, strict=True):
        if count > 0:
            if below + count >= wanted:
                return low + (high - low) * max(wanted - below, 0.0) / count
            below, last = below + count, high
    # Weights add up to a little less than their sum, by rounding.
    return last


def prometheus_name(metric: Metric) -> str:
    """Name of its series in Prometheus; a histogram's have _bucket, _sum and _count after it."""
    return (
        "engram_" + metric.name.replace("/", "_") + ("_total" if metric.type == "counter" else "")
    )


def _family(metric: Metric, run: str, samples: Iterable[tuple[dict[str, str], _Cell]]) -> Family:
    name = prometheus_name(metric)
    text = f"{metric.help} [{metric.unit}; per {metric.denominator}]"
    labels = ["run", *metric.labels]
    family: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
    if metric.type == "histogram":
        family = HistogramMetricFamily(name, text, labels=labels)
    else:
        family = (CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily)(
            name, text, labels=labels
        )
    for given, cell in samples:
        values = [run, *({"cohort": "all", **given}[label] for label in metric.labels)]
        if isinstance(family, HistogramMetricFamily):
            bounds, filled, buckets = [*map(str, map(float, metric.buckets)), "+Inf"], 0.0, []
            for bound, count in zip(bounds, cell.counts, strict=True):
                filled += count
                buckets.append((bound, filled))
            family.add_metric(values, buckets, cell.total)
        else:
            family.add_metric(values, next(value for _, value in _values("", metric, cell)))
    return family


def _json(value: float, metric: Metric) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if metric.type == "counter" and value.is_integer() else value


def _to_json(cells: Mapping[str, _Cell]) -> dict[str, list[Any]]:
    return {
        series: [
            cell.total if math.isfinite(cell.total) else None,
            cell.weight,
            *map(list, cell[2:]),
        ]
        for series, cell in cells.items()
    }


def _from_json(cells: Mapping[str, Any]) -> dict[str, _Cell]:
    return {
        series: _Cell(math.nan if total is None else total, weight, *map(tuple, per_bucket))
        for series, (total, weight, *per_bucket) in cells.items()
    }


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False)
