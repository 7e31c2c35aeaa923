"""Statistics of the rewards of many turns: where values lie, whether they still tell answers apart,
and whether they go with recall.

Per scoring call: the distribution of each component and its share at the ends of its range; parts
add up, so any call will do. Of the whole batch of an iteration, because a part could not tell:
alarms, and the correlation with recall. A component that is the same for all answers teaches
nothing, and one that lies at its upper end has nothing left to teach; one that rises while it goes
against recall is being earned without remembering; and a mix that pays copies of an earlier
interaction better than right answers teaches to copy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Literal

import numpy as np

from common.episode import Episode, RewardTerm, Turn, Verdict
from common.telemetry.metrics import Metrics
from reward_service.components.table import range_of
from reward_service.copies import CopyGain
from reward_service.normalization import SMALLEST_STD

ALARM_TURNS = 16
"""Fewer values raise no alarm: a handful of answers may well be alike."""
ALARM_SHARE = 0.95
CORRELATION_TURNS = 8
"""Fewer turns have no correlation worth showing, nor do copies on them."""
AT_END = 1e-6
"""How near to an end is at it: cosines come from float32."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Column:
    """One component on the scored turns to which it applies; all arrays float64 [values], except
    `rows`."""

    rows: np.ndarray
    """Places of these turns among the scored ones, ascending: int64."""
    raw: np.ndarray
    held: np.ndarray
    """Held to the clip, where there is one."""
    low: np.ndarray
    high: np.ndarray
    """Ends of the range: the clip's, else the component's own, nan where it is not known."""

    def saturated(self) -> dict[str, float]:
        """Share of values at the low and at the high end; empty where no value has a range. Recall
        below 0 is not at an end."""
        if np.isnan(self.low).all():
            return {}
        return {
            "low": _share(np.abs(self.held - self.low) <= AT_END),
            "high": _share(np.abs(self.held - self.high) <= AT_END),
        }


Kind = Literal["constant", "saturated_low", "saturated_high", "copies_pay"]


@dataclass(frozen=True, slots=True)
class Alarm:
    component: str
    """"total" where it is of the whole mix."""
    kind: Kind
    figure: float
    """Standard deviation of a constant component, share at the end of a saturated one, what a copy
    earns beyond the right answer."""
    values: int


def scored_turns(episodes: Iterable[Episode]) -> list[Turn]:
    return [turn for episode in episodes for turn in episode.answered if turn.reward is not None]


def columns(turns: Sequence[Turn | Verdict]) -> dict[str, Column]:
    """The components of scored turns, or of the verdicts on them, by name."""
    # Turns share their terms with many others of their call: what is the same for all of these is
    # looked at once.
    groups: dict[tuple[tuple[str, RewardTerm], ...], list[int]] = {}
    rows_of: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for row, turn in enumerate(turns):
        key = id(turn.terms), tuple(turn.rewards)
        if key not in rows_of:
            rows_of[key] = groups.setdefault(
                tuple((name, turn.terms[name]) for name in turn.rewards), []
            )
        rows_of[key].append(row)
    parts: dict[str, list[Column]] = {}
    for terms, rows in groups.items():
        for name, term in terms:
            parts.setdefault(name, []).append(
                _column(
                    name,
                    term,
                    np.array(rows),
                    np.array([turns[row].rewards[name] for row in rows], np.float64),
                )
            )
    return {name: _joined(columns) for name, columns in parts.items()}


def _column(name: str, term: RewardTerm, rows: np.ndarray, raw: np.ndarray) -> Column:
    start, end = range_of(name) or (np.nan, np.nan)
    low, high = term.low if isfinite(term.low) else start, term.high if isfinite(term.high) else end
    return Column(
        rows,
        raw,
        np.clip(raw, term.low, term.high),
        np.full(len(raw), low),
        np.full(len(raw), high),
    )


def _joined(columns: Sequence[Column]) -> Column:
    if len(columns) == 1:
        return columns[0]
    order = np.argsort(np.concatenate([column.rows for column in columns]))
    return Column(
        *(
            np.concatenate([getattr(column, field.name) for column in columns])[order]
            for field in fields(Column)
        )
    )


def record_components(metrics: Metrics, turns: Sequence[Turn | Verdict]) -> None:
    """Mean, distribution and saturation of each component over some scored turns."""
    for name, column in columns(turns).items():
        metrics.record(
            "reward/component", float(column.raw.mean()), len(column.raw), component=name
        )
        metrics.record_all("reward/value", column.raw, component=name)
        for end, share in column.saturated().items():
            metrics.record("reward/saturated", share, len(column.raw), component=name, end=end)


def alarms(components: Mapping[str, Column]) -> list[Alarm]:
    """Alarms of a whole batch: components that do not vary, and components whose values nearly all
    lie at one end of their range."""
    raised = []
    for name, column in components.items():
        if (count := len(column.held)) >= ALARM_TURNS:
            if (std := float(column.held.std())) < SMALLEST_STD:
                raised.append(Alarm(name, "constant", std, count))
            kinds: dict[str, Kind] = {"low": "saturated_low", "high": "saturated_high"}
            raised += [
                Alarm(name, kinds[end], share, count)
                for end, share in column.saturated().items()
                if share > ALARM_SHARE
            ]
    return raised


def copy_alarms(gains: Iterable[CopyGain]) -> list[Alarm]:
    """One alarm where copies pay in some strategy and form, of that in which they pay most."""
    paying = [gain for gain in gains if gain.turns >= CORRELATION_TURNS and gain.copy > gain.right]
    most = max(paying, key=lambda gain: gain.copy - gain.right, default=None)
    return (
        [] if most is None else [Alarm("total", "copies_pay", most.copy - most.right, most.turns)]
    )


def recall_correlations(components: Mapping[str, Column]) -> dict[str, float]:
    """Pearson correlation of each other component with recall, over the turns that have both.

    A component is absent where fewer than CORRELATION_TURNS turns have both, or one of the two does
    not vary over them.
    """
    recall = components.get("recall")
    out = {}
    for name, column in components.items():
        if recall is None or name == "recall":
            continue
        _, ours, theirs = np.intersect1d(
            column.rows, recall.rows, assume_unique=True, return_indices=True
        )
        a, b = column.held[ours], recall.held[theirs]
        if len(a) >= CORRELATION_TURNS and min(a.std(), b.std()) >= SMALLEST_STD:
            covariance = float(np.mean((a - a.mean()) * (b - b.mean())))
            out[name] = min(max(covariance / float(a.std() * b.std()), -1.0), 1.0)
    return out


class BatchMonitor:
    """Records what each whole batch shows, and says so in the log when an alarm begins: not again
    while it lasts."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._lasting: set[tuple[str, Kind]] = set()

    def record(self, episodes: Iterable[Episode], gains: Iterable[CopyGain] = ()) -> None:
        """All scored episodes of one iteration, and what copies would have earned in them."""
        components = columns(scored_turns(episodes))
        raised = alarms(components) + copy_alarms(gains)
        for alarm in raised:
            self._metrics.record("reward/alarms", 1, component=alarm.component, kind=alarm.kind)
            if (alarm.component, alarm.kind) not in self._lasting:
                log.warning("%s", _sentence(alarm))
        self._lasting = {(alarm.component, alarm.kind) for alarm in raised}
        for name, correlation in recall_correlations(components).items():
            self._metrics.record("reward/recall_correlation", correlation, component=name)


def _sentence(alarm: Alarm) -> str:
    if alarm.kind == "copies_pay":
        return (
            f"rewards: copies_pay, a copy of the saved interaction earns {alarm.figure:.3f} more "
            "than the "
            f"right answer, in the mean of {alarm.values} turns: the mix teaches to copy"
        )
    name = f"reward component {alarm.component}"
    if alarm.kind == "constant":
        return (
            f"{name}: constant, standard deviation {alarm.figure:.1e} over {alarm.values} "
            "turns: it tells no answer from another"
        )
    end = alarm.kind.removeprefix("saturated_")
    return (
        f"{name}: {alarm.kind}, {alarm.figure:.1%} of {alarm.values} turns at the {end} end "
        "of its range"
    )


def _share(flags: np.ndarray) -> float:
    return float(flags.mean())
