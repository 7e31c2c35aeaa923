"""The actor that judges episodes: a frozen embedding, the settings, and the metrics of what it
judged.

Stateless but for its metrics, so a restarted worker serves at once. Judging itself is
`compose.judge`. Verdicts go back, without the episodes they are about: the caller has those, and to
take a thousand turns apart and put them together again costs nearly as much as to judge them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from common.actors.actor import PooledActor
from common.config.rewards import Rewards
from common.episode import Episode, Verdict
from common.telemetry.host import record_memory
from common.telemetry.metrics import Metrics
from common.telemetry.timing import PhaseTimer
from reward_service.compose import judge
from reward_service.monitor import record_components
from reward_service.normalization import Statistics
from reward_service.preflight import open_all


class RewardWorker(PooledActor):
    """embedding: float32 [vocabulary, width]; special_ids: tokens that are no part of any text;
    known_values: see compose. number: which worker of the run; it only names its log."""

    def __init__(
        self,
        rewards: Rewards,
        embedding: np.ndarray,
        special_ids: Collection[int],
        known_values: Collection[str] = (),
        number: int = 0,
    ):
        self._number = number
        self._rewards = rewards
        self._embedding = np.ascontiguousarray(embedding, dtype=np.float32)
        self._special_ids, self._known_values = frozenset(special_ids), frozenset(known_values)
        self._metrics, self._idle_since = Metrics(), time.perf_counter()
        # What is here now stays: without this, each call's new records have the collector walk
        # through all of torch and Ray. A call brings tens of thousands of them, which live until it
        # ends: at the usual 700, looking for garbage is a tenth of its time.
        gc.freeze()
        gc.set_threshold(20_000)

    def __repr__(self) -> str:
        """Its role in the run, under which Ray shows it and its log is kept."""
        return f"reward-worker-{self._number}"

    def prepare(self) -> None:
        """Load every function and open every model that rewards need. Raises InputError where a
        model cannot be."""
        open_all(self._rewards)

    def judge(
        self, episodes: list[Episode], statistics: Statistics
    ) -> tuple[list[list[Verdict]], dict[str, float]]:
        """A verdict on each answered turn of each episode, in order, and the seconds of each
        component."""
        began = time.perf_counter()
        self._metrics.record("time/idle_fraction", 1, began - self._idle_since, role="rewards")
        timer = PhaseTimer()
        verdicts = judge(
            episodes,
            self._rewards,
            self._embedding,
            self._special_ids,
            self._known_values,
            statistics,
            timer,
        )
        self._idle_since = time.perf_counter()
        self._metrics.record("reward/batch_seconds", self._idle_since - began)
        self._metrics.record("time/idle_fraction", 0, self._idle_since - began, role="rewards")
        self._metrics.record("reward/batch_turns", sum(map(len, verdicts)))
        for component, seconds in timer.seconds.items():
            self._metrics.record("reward/component_seconds", seconds, component=component)
        record_rewards(self._metrics, verdicts)
        return verdicts, dict(timer.seconds)

    def metrics(self) -> dict[str, Any]:
        """The metrics since the last call, for `Metrics.merge`."""
        record_memory(self._metrics, "rewards")
        return self._metrics.drain()


def record_rewards(metrics: Metrics, verdicts: Iterable[Iterable[Verdict]]) -> None:
    """Counts of scored, unrewarded and failed turns, and each raw component over the scored turns
    to which it applies (reward_service/monitor.py)."""
    every = [verdict for episode in verdicts for verdict in episode]
    scored = [verdict for verdict in every if verdict.reward is not None]
    metrics.record("reward/turns", len(scored))
    metrics.record("reward/unrewarded_turns", sum(verdict.unrewarded for verdict in scored))
    for failure in (verdict.failure for verdict in every if verdict.failure is not None):
        # A failure begins with the component, or the kind of failure, that is to blame: few enough
        # values for a label.
        metrics.record("reward/failed_turns", 1, reason=failure.partition(":")[0])
    record_components(metrics, scored)
