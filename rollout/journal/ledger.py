"""Outcome of every dealt task, as pure book-keeping. `rollout/journal/journal.py` makes it durable.

Invariant (5 of the design), asserted after every entry: dealt == trained + dropped + failed + in
flight. A task may be dealt again (after a resume, or because its batch could not be completed);
each deal is its own entry and ends once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.failures import DataFailure

Moment = tuple[int, int]
"""Index of the stage in the run, iteration of the stage: later is greater."""


@dataclass(frozen=True, slots=True)
class Counts:
    dealt: int
    trained: int
    dropped: int
    failed: int
    in_flight: int
    scored: int
    """Tasks in flight that arrived with their rewards and wait for the learner."""

    def check(self) -> None:
        ended = self.trained + self.dropped + self.failed
        assert self.dealt == ended + self.in_flight, f"the books do not add up: {self}"


class Ledger:
    """Entries are plain dicts, so that what is applied is what was written; `apply` refuses an
    entry that contradicts the books."""

    def __init__(self) -> None:
        self._open: dict[str, Moment] = {}
        """When each task in flight was dealt."""
        self._scored: set[str] = set()
        self._dealt = 0
        self.trained: Counter[Moment] = Counter()
        """Tasks trained, by when they were dealt."""
        self.dropped: Counter[str] = Counter()
        """Tasks dropped, by reason."""
        self.failed: Counter[str] = Counter()
        """Tasks failed, by kind of failure (what the reason says before its first colon)."""

    def apply(self, entry: Mapping[str, Any]) -> None:
        """event is one of dealt, scored, failed, dropped, trained, rolled_back; tasks are those it
        is about."""
        match entry["event"]:
            case "dealt":
                self._deal(moment(entry), entry["tasks"])
            case "scored":
                self.expect(entry["tasks"])
                self._scored.update(entry["tasks"])
            case "failed":
                self._end(entry["tasks"])
                self.failed[entry["reason"].partition(":")[0]] += len(entry["tasks"])
            case "dropped":
                self._end(entry["tasks"])
                self.dropped[entry["reason"]] += len(entry["tasks"])
            case "trained":
                unscored = set(entry["tasks"]) - self._scored
                if unscored:
                    raise DataFailure(f"journal: trained without a score: {sorted(unscored)[:3]}")
                self._end(entry["tasks"])
                self.trained[moment(entry)] += len(entry["tasks"])
            case "rolled_back":
                self._roll_back(moment(entry), entry["reason"])
            case event:
                raise DataFailure(f"journal: unknown event {event!r}")
        self.counts.check()

    @property
    def counts(self) -> Counts:
        trained, dropped, failed = self.trained.total(), self.dropped.total(), self.failed.total()
        return Counts(self._dealt, trained, dropped, failed, len(self._open), len(self._scored))

    def in_flight(self, when: Moment) -> list[str]:
        return [task for task, dealt in self._open.items() if dealt == when]

    def scored(self, when: Moment) -> list[str]:
        return [task for task in self.in_flight(when) if task in self._scored]

    def expect(self, tasks: Sequence[str]) -> None:
        """Raises DataFailure unless a score of each of `tasks` may arrive, once."""
        self._require(tasks)
        twice = [task for task in tasks if task in self._scored]
        if twice or len(set(tasks)) != len(tasks):
            raise DataFailure(f"journal: scored twice: {twice[:3]}")

    def _require(self, tasks: Iterable[str]) -> None:
        unknown = [task for task in tasks if task not in self._open]
        if unknown:
            raise DataFailure(f"journal: not in flight: {unknown[:3]}")

    def _deal(self, when: Moment, tasks: Sequence[str]) -> None:
        twice = [task for task in tasks if task in self._open]
        if twice or len(set(tasks)) != len(tasks):
            raise DataFailure(f"journal: dealt while in flight: {twice[:3]}")
        self._open.update(dict.fromkeys(tasks, when))
        self._dealt += len(tasks)

    def _end(self, tasks: Sequence[str]) -> None:
        self._require(tasks)
        for task in tasks:
            del self._open[task]
        self._scored.difference_update(tasks)

    def _roll_back(self, when: Moment, reason: str) -> None:
        """The model went back to what it was before `when`: what was trained since is in no weights
        any more."""
        lost = sum(
            self.trained.pop(later) for later in [other for other in self.trained if other >= when]
        )
        self.dropped[reason] += lost + len(self._open)
        self._open.clear()
        self._scored.clear()


def moment(entry: Mapping[str, Any]) -> Moment:
    return entry["stage"], entry["iteration"]
