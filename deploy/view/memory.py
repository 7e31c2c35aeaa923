"""Recall by distance over time, and told-at against recalled-at, from the episodes of a run; the
controls from its evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from common.telemetry.series import parse_key
from deploy.view.watched import WatchedRun

LARGEST_MATRIX = 32
"""Turns that the matrix has rows and columns for; of longer conversations the rest is left out."""
MOST_POINTS = 60
"""Points of a curve: iterations in a row are joined where there are more."""
CONTROLS = ("before_mrl", "after_mrl", "training", "erased", "most_frequent")


def memory(watched: WatchedRun) -> dict[str, Any]:
    """{"facts", "over_time": recall by distance and iteration, "matrix", "evaluations"}."""
    rows = watched.episodes.rows
    stage, iteration, told, asked, named = _facts(watched)
    summary, _ = watched.summary()
    retention = summary.get("retention", {})
    return {
        "facts": len(named),
        "episodes": len(rows),
        "over_time": _over_time(stage, iteration, asked - told, named),
        "matrix": _matrix(told, asked, named),
        "evaluations": {
            name: {
                "recall": retention[name],
                "intervals": retention.get("intervals", {}).get(name, {}),
                "counts": retention.get("counts", {}).get(name, {}),
            }
            for name in CONTROLS
            if isinstance(retention.get(name), Mapping)
        },
        "held_out": _held_out(watched),
    }


def _facts(watched: WatchedRun) -> tuple[np.ndarray, ...]:
    """Stage, iteration, turn told, turn asked and whether named, of every fact: [facts] each."""
    rows = watched.episodes.rows
    found: list[tuple[np.ndarray, ...]] = []
    for number, part in enumerate(rows.parts):
        recalled = watched.episodes.recalled(part)
        own = rows.part == number
        # Earlier attempts of an episode do not count.
        counts = np.zeros(len(part), bool)
        counts[rows.row[own]] = True
        kept = counts[recalled.episode]
        heads = [
            part.heads[name].to_numpy(zero_copy_only=False)[recalled.episode]
            for name in ("stage", "iteration")
        ]
        found.append(
            tuple(
                column[kept] for column in (*heads, recalled.told, recalled.asked, recalled.named)
            )
        )
    if not found:
        return tuple(np.zeros(0, np.int64) for _ in range(5))
    return tuple(np.concatenate(columns) for columns in zip(*found, strict=True))


def _over_time(
    stage: np.ndarray, iteration: np.ndarray, distance: np.ndarray, named: np.ndarray
) -> dict[str, Any]:
    """Recall of the answers of training at each distance, by iteration: {"iterations", "distances",
    "recall": [distances][points], "counts"}. Iterations of several stages follow one another."""
    if not len(named):
        return {"iterations": [], "distances": [], "recall": [], "counts": []}
    moments = sorted(set(zip(stage.tolist(), iteration.tolist(), strict=True)))
    place = {moment: index for index, moment in enumerate(moments)}
    at = np.array(
        [place[moment] for moment in zip(stage.tolist(), iteration.tolist(), strict=True)]
    )
    joined = -(-len(moments) // MOST_POINTS)
    points = at // joined
    shape = (int(distance.max()) + 1, int(points.max()) + 1)
    cell = (distance, points)
    counts, hits = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    np.add.at(counts, cell, 1)
    np.add.at(hits, cell, named)
    present = [row for row in range(shape[0]) if counts[row].any()]
    return {
        "iterations": list(range(0, len(moments), joined)),
        "joined": joined,
        "distances": present,
        "recall": [_shares(hits[row], counts[row]) for row in present],
        "counts": [counts[row].tolist() for row in present],
        "all": _shares(hits.sum(axis=0), counts.sum(axis=0)),
    }


def _matrix(told: np.ndarray, asked: np.ndarray, named: np.ndarray) -> dict[str, Any]:
    """Share of the facts told in one turn that were recalled in another: "recall" and "counts" are
    [turn told][turn asked]."""
    if not len(named):
        return {"size": 0, "left_out": 0, "recall": [], "counts": []}
    size = int(min(asked.max() + 1, LARGEST_MATRIX))
    fits = asked < size
    counts, hits = np.zeros((size, size), np.int64), np.zeros((size, size), np.int64)
    np.add.at(counts, (told[fits], asked[fits]), 1)
    np.add.at(hits, (told[fits], asked[fits]), named[fits])
    return {
        "size": size,
        "left_out": int(len(named) - fits.sum()),
        "recall": [_shares(hit, count) for hit, count in zip(hits, counts, strict=True)],
        "counts": counts.tolist(),
    }


def _shares(hits: np.ndarray, counts: np.ndarray) -> list[float | None]:
    return [
        round(hit / count, 4) if count else None
        for hit, count in zip(hits.tolist(), counts.tolist(), strict=True)
    ]


def _held_out(watched: WatchedRun) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Recall of held-out conversations as measured during the run: by memory (kept, erased) and
    distance, (step, recall) each."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for key, (steps, values) in list(watched.columns.items()):
        if key.startswith("eval/recall{"):
            labels = parse_key(key).labels
            kept, distance = labels.get("memory", "kept"), labels.get("distance", "all")
            points = found.setdefault(kept, {}).setdefault(distance, [])
            points += zip(steps, values, strict=False)
    return found
