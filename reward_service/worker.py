"""The actor that scores episodes: a frozen embedding, the settings, and the metrics of what it scored.

Stateless but for its metrics, so a restarted worker serves at once. Scoring itself is `compose.score_episodes`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from common.config.rewards import Rewards
from common.episode import Episode
from common.metrics import Metrics
from common.pooled_actor import PooledActor
from reward_service.compose import score_episodes
from reward_service.monitor import record_components, scored_turns
from reward_service.requirements import open_models
from reward_service.statistics import Statistics


class RewardWorker(PooledActor):
    """embedding: float32 [vocabulary, width]; special_ids: tokens that are no part of any text; known_values: see compose."""

    def __init__(self, rewards: Rewards, embedding: np.ndarray, special_ids: Collection[int], known_values: Collection[str] = ()):
        self._rewards = rewards
        self._embedding = np.ascontiguousarray(embedding, dtype=np.float32)
        self._special_ids, self._known_values = frozenset(special_ids), frozenset(known_values)
        self._metrics = Metrics()
        # What is here now stays: without this, each scoring call's new records have the collector walk through all of torch and Ray.
        gc.freeze()

    def prepare(self) -> None:
        """Open every model that rewards need. Raises InputError where one cannot be."""
        open_models(self._rewards)

    def score(self, episodes: list[Episode], statistics: Statistics) -> list[Episode]:
        """The episodes in the same order, scored or with `failure` set, turn by turn."""
        began = time.perf_counter()
        scored = score_episodes(episodes, self._rewards, self._embedding, self._special_ids, self._known_values, statistics)
        self._metrics.record("reward/batch_seconds", time.perf_counter() - began)
        self._metrics.record("reward/batch_turns", sum(len(episode.answered) for episode in episodes))
        record_rewards(self._metrics, scored)
        return scored

    def metrics(self) -> dict[str, Any]:
        """What was recorded since the last call, for `Metrics.merge`."""
        return self._metrics.drain()


def record_rewards(metrics: Metrics, episodes: Sequence[Episode]) -> None:
    """Counts of scored and failed turns, and each raw component over the scored turns to which it applies (reward_service/monitor.py)."""
    scored = scored_turns(episodes)
    metrics.record("reward/turns", len(scored))
    for turn in (turn for episode in episodes for turn in episode.answered if turn.failure is not None):
        # A failure begins with the component, or the kind of failure, that is to blame: few enough values for a label.
        metrics.record("reward/failed_turns", 1, reason=str(turn.failure).partition(":")[0])
    record_components(metrics, scored)
