"""Metrics of runs as curves: which there are, with their meaning, and their points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.telemetry.registry import REGISTRY
from common.telemetry.series import parse_key
from deploy.view.watched import WatchedRun

MOST_POINTS = 600
"""Points of one curve; of a longer one the lowest and highest of each piece are kept."""
FIRST = (
    "objective/scores",
    "rollout/recall",
    "rollout/exact",
    "eval/recall",
    "train/loss_lm",
    "train/loss_preference",
    "objective/kl",
    "reward/component",
)
"""Metrics that stand before the others."""


def catalogue(runs: Sequence[WatchedRun]) -> list[dict[str, Any]]:
    """Every metric that one of the runs has: name, family, meaning, unit, denominator, better, and
    how many points each run has of it, in its longest curve. Those that the registry does not know
    (an older run's) come last."""
    points: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        for key, (steps, _) in list(run.columns.items()):
            counts = points.setdefault(parse_key(key).name, [0] * len(runs))
            counts[index] = max(counts[index], len(steps))
    names = dict.fromkeys((*FIRST, *REGISTRY))
    order = {name: place for place, name in enumerate(names)}
    found = []
    for name in sorted(points, key=lambda name: (order.get(name, len(order)), name)):
        metric = REGISTRY.get(name)
        found.append(
            {
                "name": name,
                "family": name.partition("/")[0],
                "help": metric.help if metric else "not in this version's registry of metrics",
                "unit": metric.unit if metric else "",
                "type": metric.type if metric else "",
                "denominator": metric.denominator if metric else "",
                "better": metric.better if metric else None,
                "labels": list(metric.labels) if metric else [],
                "points": points[name],
            }
        )
    return found


def series(
    runs: Sequence[WatchedRun], names: Sequence[str], most: int = MOST_POINTS
) -> dict[str, list[dict[str, Any]]]:
    """Curves of some metrics, by name: [{"run", "key", "label", "statistic", "steps", "values",
    "points"}], one for each combination of labels and run. points: how many there were before they
    were thinned to `most`."""
    wanted = set(names)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for index, run in enumerate(runs):
        curves = {
            key: own for key, own in list(run.columns.items()) if parse_key(key).name in wanted
        }
        for key in sorted(curves, key=_in_order):
            steps, values = curves[key]
            parsed = parse_key(key)
            kept = thinned(values, most)
            found[parsed.name].append(
                {
                    "run": index,
                    "key": key,
                    "label": " ".join(f"{name}={value}" for name, value in parsed.labels.items()),
                    "statistic": parsed.statistic,
                    "steps": [steps[at] for at in kept],
                    "values": [values[at] for at in kept],
                    "points": len(values),
                }
            )
    return found


def thinned(values: Sequence[float], most: int) -> list[int]:
    """Places of at most so many values, in order: the first and last, and the lowest and highest of
    pieces of equal length, so that no peak is lost."""
    if len(values) <= most:
        return list(range(len(values)))
    pieces = most // 2 - 1
    kept = {0, len(values) - 1}
    for piece in range(pieces):
        low, high = piece * len(values) // pieces, (piece + 1) * len(values) // pieces
        kept.add(min(range(low, high), key=values.__getitem__))
        kept.add(max(range(low, high), key=values.__getitem__))
    return sorted(kept)


def stages(run: WatchedRun) -> list[dict[str, Any]]:
    """Where each stage, and each curriculum step, begins: [{"step", "name"}]."""
    found: list[dict[str, Any]] = []
    before: tuple[Any, ...] = ()
    last = 0
    for row in run.rows:
        now = (row.get("run/stage"), row.get("stage"))
        if now != before:
            found.append({"step": last, "name": row.get("stage") or "?"})
            before = now
        last = row["step"]
    return found


def _in_order(key: str) -> tuple[Any, ...]:
    """Labels that are numbers in the order of numbers; "all" first."""
    parsed = parse_key(key)
    labels = tuple(
        (value != "all", int(value) if value.isdecimal() else -1, value)
        for value in parsed.labels.values()
    )
    return parsed.name, labels, parsed.statistic
