"""Sentences on what goes wrong in a run's rewards, once when it begins: for a terminal, where a log
file is not read."""

from __future__ import annotations

from collections.abc import Mapping

from common.telemetry.series import parse_key

FAILED, ALARMS = "reward/failed_turns", "reward/alarms"


class Alerts:
    """Reads the rows of metrics as they come. Both metrics are counters: totals since the run
    began."""

    def __init__(self) -> None:
        self._before: dict[str, float] = {}
        self._lasting: set[str] = set()

    def sentences(self, step: int, row: Mapping[str, float]) -> list[str]:
        """An alarm is told when it begins. Failed turns are told by reason: the first ones, and
        whenever there are ten times as many as when they were told last."""
        told = []
        rising: set[str] = set()
        for key, total in row.items():
            name, _, _ = key.partition("{")
            if name not in (FAILED, ALARMS):
                continue
            labels = parse_key(key).labels
            before = self._before.get(key, 0.0)
            if name == ALARMS and total > before:
                rising.add(key)
                if key not in self._lasting:
                    told.append(
                        f"step {step}: reward alarm: {labels['component']} {labels['kind']}"
                    )
            if name == FAILED and (before == 0 < total or 0 < 10 * before <= total):
                told.append(f"step {step}: {total:g} turns failed so far: {labels['reason']}")
            if name == ALARMS or total >= 10 * before:
                self._before[key] = total
        self._lasting = rising
        return told
