"""Metrics of the conductor: the books as they stand, and where it waited."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from common.telemetry.metrics import Metrics
from rollout.journal.ledger import Ledger

_DETAIL = re.compile(r":| to step ")


def record_books(metrics: Metrics, books: Ledger) -> None:
    """Totals of the run, gauges because the journal outlives what a checkpoint's counters take
    back: it alone knows all that was dealt."""
    counts = books.counts
    metrics.record("conductor/dealt", counts.dealt)
    metrics.record("conductor/trained", counts.trained)
    metrics.record("conductor/in_flight", counts.in_flight)
    metrics.record(
        "conductor/lost",
        counts.dealt - counts.trained - counts.dropped - counts.failed - counts.in_flight,
    )
    for reason, count in _by_kind(books.dropped).items():
        metrics.record("conductor/dropped", count, reason=reason)
    for reason, count in _by_kind(books.failed).items():
        metrics.record("conductor/failed", count, reason=reason)


def record_waits(
    metrics: Metrics, seconds: Mapping[str, float], before: Mapping[str, float]
) -> dict[str, float]:
    """Record by how much `seconds` of waiting, by phase, grew since `before`; returns what to give
    as `before` next time."""
    for phase, total in seconds.items():
        metrics.record(
            "time/phase_seconds", total - before.get(phase, 0.0), phase=phase, role="conductor"
        )
    return dict(seconds)


def _by_kind(reasons: Mapping[str, int]) -> Counter[str]:
    """By the part of a reason that does not name a step or an error: few enough values for a
    label."""
    kinds: Counter[str] = Counter()
    for reason, count in reasons.items():
        kinds[_DETAIL.split(reason)[0]] += count
    return kinds
