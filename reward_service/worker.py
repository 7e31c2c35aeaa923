"""The actor that scores episodes: a frozen embedding, the settings, and the counts of what it scored.

Stateless but for its counts, so a restarted worker serves at once. Scoring itself is `compose.score_episodes`.
"""

from __future__ import annotations

import time
from collections.abc import Collection

import numpy as np

from common.config.schema import Rewards
from common.episode import Episode
from common.pooled_actor import PooledActor
from reward_service.compose import COMPONENTS, score_episodes


class RewardWorker(PooledActor):
    """embedding: float32 [vocabulary, width]; special_ids: tokens that are no part of any text; known_values: see compose."""

    def __init__(self, rewards: Rewards, embedding: np.ndarray, special_ids: Collection[int], known_values: Collection[str] = ()):
        self._rewards = rewards
        self._embedding = np.ascontiguousarray(embedding, dtype=np.float32)
        self._special_ids, self._known_values = frozenset(special_ids), frozenset(known_values)
        self._counts = {"episodes": 0.0, "turns_scored": 0.0, "turns_failed": 0.0, "seconds": 0.0}
        self._sums = dict.fromkeys(COMPONENTS, 0.0)
        self._applied = dict.fromkeys(COMPONENTS, 0.0)

    def score(self, episodes: list[Episode]) -> list[Episode]:
        """The episodes in the same order, scored or with `failure` set, turn by turn."""
        began = time.perf_counter()
        scored = score_episodes(episodes, self._rewards, self._embedding, self._special_ids, self._known_values)
        self._count(scored)
        self._counts["seconds"] += time.perf_counter() - began
        return scored

    def metrics(self) -> dict[str, float]:
        """Totals since this worker started, ready to be added over workers: `<component>_sum` over `<component>_turns` turns."""
        sums = {f"{name}_sum": value for name, value in self._sums.items()}
        return {**self._counts, **sums, **{f"{name}_turns": value for name, value in self._applied.items()}}

    def _count(self, episodes: list[Episode]) -> None:
        self._counts["episodes"] += len(episodes)
        for episode in episodes:
            for turn in episode.answered:
                self._counts["turns_scored" if turn.reward is not None else "turns_failed"] += 1
                for name, value in turn.rewards.items():
                    self._sums[name] += value
                    self._applied[name] += 1
