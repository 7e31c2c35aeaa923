"""Sentences on what goes wrong in a run, once when it begins: for a terminal, where a log file is
not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.telemetry.series import parse_key
from learner.hacking import SampleTexts
from learner.watch import Alarm

FAILED, ALARMS, GROWTH = "reward/failed_turns", "reward/alarms", "memory/growth"
MEANING = {
    "constant": "it is the same for all answers and teaches nothing; normal where all are right",
    "saturated_low": "nearly all answers are at the low end of its range",
    "saturated_high": "nearly all answers are at the high end of its range; normal at the end of a "
    "run that has learnt",
    "copies_pay": "copying an earlier interaction earns more than the right answer",
}
"""Sentences on the kinds of alarm of `reward_service/monitor.py`."""
LARGEST_GROWTH = 0.25
"""Doublings of memory per write from which on it grows without bound: a factor of 16 in 16 turns,
65,000 in 64."""
GROWING_ROWS = 3
"""So many rows in a row, or it is chance."""
SAMPLED_AS = {"held_out_falls": "recall_falls"}
"""Kinds of alarms that take the sample of another kind: held-out answers are not at hand."""


class Alerts:
    """Reads the rows of metrics as they come. Those of rewards are counters: totals since the run
    began."""

    def __init__(self) -> None:
        self._before: dict[str, float] = {}
        self._lasting: set[str] = set()
        self._hacking: set[str] = set()
        self._growing = 0

    def sentences(self, step: int, row: Mapping[str, float]) -> list[str]:
        """An alarm is told when it begins. Failed turns are told by reason: the first ones, and
        whenever there are ten times as many as when they were told last."""
        return [*self._of_rewards(step, row), *self._of_memory(step, row)]

    def hacking(self, step: int, alarms: Sequence[Alarm], samples: SampleTexts) -> list[str]:
        """Sentences on the alarms of a row, each with an answer that shows what is meant, when they
        begin."""
        begun = [alarm for alarm in alarms if alarm.kind not in self._hacking]
        self._hacking = {alarm.kind for alarm in alarms}
        told = []
        for alarm in begun:
            _, text = samples.get(SAMPLED_AS.get(alarm.kind, alarm.kind), (0.0, ""))
            told.append(
                f"step {step}: hacking alarm: {alarm.kind}: {alarm.sentence}"
                + (f"; such as {text}" if text else "")
            )
        return told

    def _of_memory(self, step: int, row: Mapping[str, float]) -> list[str]:
        growth = row.get(GROWTH)
        if growth is None:
            return []
        self._growing = self._growing + 1 if growth > LARGEST_GROWTH else 0
        if self._growing != GROWING_ROWS:
            return []
        return [
            f"step {step}: memory alarm: each write makes memory {2**growth:.2g} times as large, "
            "so what it held fades and long conversations overflow; model.gate_activation=sigmoid "
            "bounds it"
        ]

    def _of_rewards(self, step: int, row: Mapping[str, float]) -> list[str]:
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
                        f"step {step}: reward alarm: {labels['component']} {labels['kind']}: "
                        f"{MEANING[labels['kind']]}"
                    )
            if name == FAILED and (before == 0 < total or 0 < 10 * before <= total):
                told.append(f"step {step}: {total:g} turns failed so far: {labels['reason']}")
            if name == ALARMS or total >= 10 * before:
                self._before[key] = total
        self._lasting = rising
        return told
