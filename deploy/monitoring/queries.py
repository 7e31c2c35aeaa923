"""PromQL that can only name what the registry has.

An expression is written with names of the registry in angle brackets, matchers behind a space:

    rate(<rollout/tokens>[$__rate_interval])
    <eval/recall memory="kept",distance="all"> - <eval/recall memory="erased",distance="all">
    histogram_quantile(0.95, sum by (le, run) (rate(<reward/value:bucket>[$__rate_interval])))

`expand` turns them into Prometheus' names. A name, a label or a part of a histogram that is not
there is an InputError: a dashboard with an empty panel, or an alert that never fires, is not
written.
"""

from __future__ import annotations

import re

from common.failures import InputError, nearest
from common.telemetry.metric import Metric
from common.telemetry.prometheus import prometheus_name
from common.telemetry.registry import REGISTRY

_MATCHER = r'\w+(?:=~|!~|!=|=)"[^"]*"'
_SERIES = re.compile(
    rf"<(?P<name>\w+/[\w/]*)(?::(?P<part>\w+))?(?: (?P<matchers>{_MATCHER}(?:,{_MATCHER})*))?>"
)
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")
RUN = "run"
"""The label that the exporter puts on every series."""


def expand(where: str, expression: str, scope: str = "") -> str:
    """Prometheus' own text. scope: matchers that every series gets, such as 'run=~"$run"'.

    Raises InputError at `where` for what the registry lacks."""
    metrics = metrics_of(where, expression)
    if not metrics:
        raise InputError(where, f"{expression!r} names no metric, such as <objective/scores>")
    _require_labels(where, metrics, _labels_in_groupings(expression))
    return _SERIES.sub(lambda series: _expanded(where, series, scope), expression)


def metrics_of(where: str, expression: str) -> list[Metric]:
    """The metrics that an expression names; InputError for one that is not in the registry."""
    found = []
    for series in _SERIES.finditer(expression):
        metric = REGISTRY.get(series["name"])
        if metric is None:
            raise InputError(
                where, f"no metric {series['name']!r}; {nearest(series['name'], REGISTRY)}"
            )
        found.append(metric)
    return found


def require_legend(where: str, expression: str, legend: str) -> None:
    """Raises InputError where a legend shows a label that no metric of its expression has."""
    _require_labels(where, metrics_of(where, expression), _LEGEND.findall(legend))


def grown(series: str, window: str, by: str = RUN) -> str:
    """By how much a counter, as `<name matchers>`, grew within `window`, also where its series
    began inside of it.

    `increase` sees no growth in a series' first value, and a counter with labels begins when it
    first counts. A resumed run may be another target, so of those with the same labels the largest
    counts. A counter that a resume took back gives less than 0 for a while.
    """
    (metric,) = metrics_of("growth", series)
    labels = ", ".join((RUN, *metric.labels))
    now = f"sum by ({by}) (max by ({labels}) ({series}))"
    before = f"sum by ({by}) (max by ({labels}) (last_over_time({series}[6h] offset {window})))"
    return f"({now} - ({before} or {now} * 0))"


def parts_of(metric: Metric) -> tuple[str, ...]:
    """Series of a histogram in Prometheus. The sum of values below 0 is no counter, so the exporter
    leaves sum and count out where there are buckets for such."""
    if metric.type != "histogram":
        return ()
    return ("bucket",) if min(metric.buckets) < 0 else ("bucket", "sum", "count")


def _expanded(where: str, series: re.Match[str], scope: str) -> str:
    metric, part, matchers = REGISTRY[series["name"]], series["part"], series["matchers"] or ""
    parts = parts_of(metric)
    if parts and part not in parts:
        choice = " or ".join(f"{metric.name}:{each}" for each in parts)
        raise InputError(where, f"{metric.name} is a histogram: take {choice}")
    if metric.type != "histogram" and part:
        raise InputError(where, f"{metric.name} is no histogram: it has no :{part}")
    _require_labels(where, [metric], re.findall(r"(\w+)(?:=~|!~|!=|=)\"", matchers))
    name = prometheus_name(metric) + (f"_{part}" if part else "")
    inside = ",".join(each for each in (scope, matchers) if each)
    return f"{name}{{{inside}}}" if inside else name


def _labels_in_groupings(expression: str) -> list[str]:
    return [
        label.strip()
        for inside in _GROUPING.findall(expression)
        for label in inside.split(",")
        if label.strip()
    ]


def _require_labels(where: str, metrics: list[Metric], labels: list[str]) -> None:
    known = {RUN, *(label for metric in metrics for label in metric.labels)}
    if any(metric.type == "histogram" for metric in metrics):
        known.add("le")
    for label in labels:
        if label not in known:
            names = ", ".join(metric.name for metric in metrics)
            raise InputError(where, f"{names}: no label {label!r}; {nearest(label, sorted(known))}")
