"""One series of a metric: its key in a row, and the cell that holds what was observed.

A series is written as `name` or `name{label=value,…}`, labels in the registry's order, `cohort=all`
left out. Two cells merge without loss: a mean is carried as a weighted sum until it is read, so the
metric of two shards is the metric of the whole.
"""

from __future__ import annotations

import bisect
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from common.failures import nearest
from common.telemetry.metric import COHORTS, Metric
from common.telemetry.registry import REGISTRY

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


class Cell(NamedTuple):
    """The observations of one series, in a form that merges with another cell without loss."""

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


def metric_of(name: str) -> Metric:
    metric = REGISTRY.get(name)
    if metric is None:
        raise ValueError(f"no metric {name!r}; {nearest(name, REGISTRY)}")
    return metric


def series_of(metric: Metric, labels: Mapping[str, str | int]) -> str:
    """The key of a series; ValueError for labels that the metric does not have, or lacks."""
    if not labels and not metric.labels:
        return metric.name
    return _series_of(metric.name, tuple((label, str(value)) for label, value in labels.items()))


@lru_cache(maxsize=4096)
def _series_of(name: str, given_labels: tuple[tuple[str, str], ...]) -> str:
    """Remembered, because the few series of a run are named thousands of times."""
    metric, labels = REGISTRY[name], dict(given_labels)
    given = {"cohort": "all", **labels} if "cohort" in metric.labels else labels
    if unknown := given.keys() - set(metric.labels):
        word = sorted(unknown)[0]
        valid = nearest(word, metric.labels) if metric.labels else "it takes none"
        raise ValueError(f"{metric.name} has no label {word!r}; {valid}")
    if missing := set(metric.labels) - given.keys():
        raise ValueError(f"{metric.name} needs the label {sorted(missing)[0]!r}")
    parts = []
    for label in metric.labels:
        value = given[label]
        if not value or _RESERVED.search(value):
            raise ValueError(f"{metric.name}: label {label} cannot be {value!r}")
        if label == "cohort" and value not in COHORTS:
            raise ValueError(f"{metric.name}: no cohort {value!r}; {nearest(value, COHORTS)}")
        if (label, value) != ("cohort", "all"):
            parts.append(f"{label}={value}")
    return f"{metric.name}{{{','.join(parts)}}}" if parts else metric.name


def observation(metric: Metric, value: float, weight: float) -> Cell:
    if metric.type == "histogram":
        place, buckets = bisect.bisect_left(metric.buckets, value), len(metric.buckets) + 1
        counts, at = [0.0] * buckets, [0.0] * buckets
        counts[place], at[place] = weight, value
        return Cell(value * weight, weight, tuple(counts), tuple(at), tuple(at))
    if metric.reduction == "mean":
        return Cell(value * weight, weight)
    return Cell(value, float(time.time_ns()) if metric.reduction == "last" else 0.0)


def combined(metric: Metric, a: Cell, b: Cell) -> Cell:
    if metric.reduction == "max":
        return (
            a
            if math.isnan(a.total)
            else Cell(b.total if math.isnan(b.total) else max(a.total, b.total))
        )
    if metric.reduction == "last":
        return a if a.weight > b.weight else b
    return Cell(
        a.total + b.total,
        a.weight + b.weight,
        tuple(x + y for x, y in zip(a.counts, b.counts, strict=True)),
        _extremes(a, b, a.lows, b.lows, min),
        _extremes(a, b, a.highs, b.highs, max),
    )


def _extremes(
    a: Cell,
    b: Cell,
    of_a: Iterable[float],
    of_b: Iterable[float],
    choose: Callable[[float, float], float],
) -> tuple[float, ...]:
    """Per bucket, of two cells: an empty bucket has no say."""
    buckets = zip(a.counts, b.counts, of_a, of_b, strict=True)
    return tuple(choose(x, y) if m and n else x if m else y for m, n, x, y in buckets)


def values_of(series: str, metric: Metric, cell: Cell) -> Iterator[tuple[str, float]]:
    yield series, cell.total / cell.weight if metric.reduction == "mean" else cell.total
    if metric.type == "histogram":
        for statistic, share in QUANTILES.items():
            yield f"{series}:{statistic}", _quantile(cell, share)
        yield f"{series}:max", _quantile(cell, 1.0)


def _quantile(cell: Cell, share: float) -> float:
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


def json_value(value: float, metric: Metric) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if metric.type == "counter" and value.is_integer() else value


def cells_to_json(cells: Mapping[str, Cell]) -> dict[str, list[Any]]:
    return {
        series: [
            cell.total if math.isfinite(cell.total) else None,
            cell.weight,
            *map(list, cell[2:]),
        ]
        for series, cell in cells.items()
    }


def cells_from_json(cells: Mapping[str, Any]) -> dict[str, Cell]:
    return {
        series: Cell(math.nan if total is None else total, weight, *map(tuple, per_bucket))
        for series, (total, weight, *per_bucket) in cells.items()
    }
