"""Shows metrics to Prometheus."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from common.failures import InputError
from common.telemetry.metric import Metric
from common.telemetry.metrics import Metrics
from common.telemetry.registry import REGISTRY
from common.telemetry.series import Cell, parse_key, values_of

LAST_SCRAPE_SECONDS = 15.0
"""Longest wait at the end of a run for a scrape that is due."""


class PrometheusExporter(Collector):
    """Serves what was last published on http://host:port/metrics, with the label `run` on every
    series.

    The last figures of a run (its evaluation, its last row) are published moments before its end.
    `close` waits until they were scraped, where somebody scrapes often enough.
    """

    def __init__(self, host: str, port: int, run: str):
        """port 0 takes any free one; see `port`. InputError where the address cannot be had."""
        self.run = run
        self._cells: dict[str, Cell] = {}
        self._served = threading.Event()
        """Whether what is published was scraped."""
        self._served.set()
        self._scrapes = (-math.inf, -math.inf)
        """Moments of the last two."""
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
        self._served.clear()

    def close(self) -> None:
        """Wait for the scrape that is due, `LAST_SCRAPE_SECONDS` at most, and stop."""
        before, last = self._scrapes
        every = last - before
        due = last + 1.5 * every - time.monotonic()
        # One that is overdue will not come, and what was scraped once may have been a person.
        if 0 < due <= LAST_SCRAPE_SECONDS:
            self._served.wait(due)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Family]:
        """Called by the server's thread; `publish` swaps the whole dictionary, so one scrape is of
        one moment."""
        self._scrapes = self._scrapes[1], time.monotonic()
        cells = self._cells
        grouped: dict[str, list[tuple[dict[str, str], Cell]]] = {}
        for series, cell in cells.items():
            key = parse_key(series)
            grouped.setdefault(key.name, []).append((key.labels, cell))
        for metric in REGISTRY.values():
            # An unlabelled counter is there from the start: an alert on a series that is missing
            # never fires.
            empty: list[tuple[dict[str, str], Cell]] = (
                [({}, Cell(0.0))] if metric.type == "counter" and not metric.labels else []
            )
            if samples := grouped.get(metric.name, empty):
                yield _family(metric, self.run, samples)
        if cells is self._cells:
            self._served.set()


def require_port(host: str, port: int) -> None:
    """Raises InputError where an exporter could not listen at the address: for the driver to ask
    before it starts the actor that has the exporter."""
    where = "metrics.port" if port else "metrics.host"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the exporter does
            tried.bind(address)
            tried.listen()
    except OSError as refused:
        raise InputError(
            where,
            f"cannot listen on {host}:{port}: {refused.strerror}; choose another, or port 0 for a "
            "free one",
        ) from refused


def prometheus_name(metric: Metric) -> str:
    """Name of its series in Prometheus; a histogram's have _bucket, _sum and _count after it."""
    return (
        "engram_" + metric.name.replace("/", "_") + ("_total" if metric.type == "counter" else "")
    )


def _family(metric: Metric, run: str, samples: Iterable[tuple[dict[str, str], Cell]]) -> Family:
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
            family.add_metric(values, next(value for _, value in values_of("", metric, cell)))
    return family
