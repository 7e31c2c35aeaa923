"""The type of one line of the registry, and short forms to write such lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Type = Literal["counter", "gauge", "histogram"]
Reduction = Literal["sum", "mean", "max", "last"]
COHORTS = ("all", "trained")

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
VALUES = (-5, -2, -1, -0.5, -0.01, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1, 2, 5)
"""Buckets of rewards, which are mostly in [0, 1]. The narrow buckets below 0 and 1 keep the ends,
where many values lie, apart from what is near them."""
TURNS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the registry."""

    name: str
    type: Type
    unit: str
    labels: tuple[str, ...]
    """Names of its labels. `cohort` may be left out where it is "all"; every other must be
    given."""
    reduction: Reduction
    """How two observations become one. Counters and rates add; a mean is weighted by the amount of
    its denominator."""
    denominator: str
    """The denominator in words; for a counter, what one count is."""
    help: str
    better: Literal["lower", "higher"] | None = None
    """Which end is good; None where neither is."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets; one without bound is added."""


def counter(
    name: str, unit: str, denominator: str, help_: str, labels: tuple[str, ...] = ()
) -> Metric:
    return Metric(name, "counter", unit, labels, "sum", denominator, help_)


def mean(
    name: str,
    unit: str,
    denominator: str,
    help_: str,
    labels: tuple[str, ...] = (),
    better: Literal["lower", "higher"] | None = None,
) -> Metric:
    return Metric(name, "gauge", unit, labels, "mean", denominator, help_, better)


def gauge(
    name: str,
    unit: str,
    reduction: Reduction,
    denominator: str,
    help_: str,
    labels: tuple[str, ...] = (),
    better: Literal["lower", "higher"] | None = None,
) -> Metric:
    return Metric(name, "gauge", unit, labels, reduction, denominator, help_, better)


def histogram(
    name: str,
    unit: str,
    buckets: tuple[float, ...],
    denominator: str,
    help_: str,
    labels: tuple[str, ...] = (),
) -> Metric:
    return Metric(name, "histogram", unit, labels, "mean", denominator, help_, None, buckets)
