"""The reward pool on a real local Ray."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray

from common.config.rewards import Rewards
from common.episode import Episode, Fact, Turn
from common.metrics import Metrics
from reward_service.compose import score_episodes
from reward_service.pool import RewardPool

pytestmark = pytest.mark.usefixtures("ray_local")

EMBEDDING = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
SPECIAL = range(8)
TWO = 2 * 4 * 90
"""Tokens of two of the episodes below."""


def episodes(count: int) -> list[Episode]:
    rng = np.random.default_rng(1)

    def tokens() -> list[int]:
        return rng.integers(8, 64, 30).tolist()

    def turn(index: int) -> Turn:
        return Turn(tokens(), tokens(), [], tokens(), facts=(Fact("Rex", 0),) if index == 2 else (), answer="Rex")

    return [Episode(f"e{i}", f"t{i}", i, tuple(turn(t) for t in range(4)), 0) for i in range(count)]


def run(body: Callable[[RewardPool], Coroutine[Any, Any, Any]], rewards: Rewards) -> Any:
    async def main() -> Any:
        pool = RewardPool(rewards, EMBEDDING, SPECIAL)
        try:
            return await body(pool)
        finally:
            await pool.close()

    return asyncio.run(asyncio.wait_for(main(), 90))


def test_every_episode_is_scored_once_though_a_worker_is_killed_meanwhile() -> None:
    rewards, dealt = Rewards(workers=2, batch_tokens=TWO), episodes(600)

    async def body(pool: RewardPool) -> tuple[list[Episode], dict[str, int]]:
        # The pid from the actor itself: titles and tables may name another run's.
        pid: Any = await asyncio.to_thread(ray.get, pool.actors[0].apply.remote(lambda _: os.getpid()), timeout=30)
        scoring = asyncio.create_task(pool.score(dealt, {}))
        while pool.stats()["calls"] < 30:
            await asyncio.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        scored = await scoring
        async with asyncio.timeout(30):
            while pool.stats()["healthy"] < 2:
                await asyncio.sleep(0.05)
        return scored, pool.stats()

    scored, stats = run(body, rewards)
    assert stats["infra_failures"] >= 1
    assert stats["retries"] >= 1
    assert stats["restored"] == 1
    assert scored == score_episodes(dealt, rewards, EMBEDDING, SPECIAL)
    assert all(turn.reward is not None for one in scored for turn in one.answered)


def test_an_episode_that_no_worker_can_take_is_alone_in_failing_and_is_counted() -> None:
    rewards, dealt = Rewards(workers=1, batch_tokens=4 * TWO), episodes(16)
    dealt[5] = replace(dealt[5], strategy="backwards")  # type: ignore[arg-type]

    async def body(pool: RewardPool) -> tuple[list[Episode], dict[str, Any]]:
        scored = await pool.score(dealt, {})
        assert pool.after({}, scored) == {}
        return scored, await pool.metrics()

    scored, state = run(body, rewards)
    assert [one.id for one in scored] == [one.id for one in dealt]
    assert [one.id for one in scored if one.status == "failed"] == ["e5"]
    assert [turn.reward for turn in scored[5].answered] == [None] * 3
    assert "KeyError" in str(scored[5].turns[1].failure)

    metrics = Metrics()
    metrics.merge(state)
    row = metrics.flush(step=0, stage="test")
    assert row["reward/turns"] == 15 * 3
    assert row["reward/failed_turns{reason=DataFailure}"] == 3
    assert row["reward/component{component=recall}"] == 1.0
    assert row["reward/alarms{component=length,kind=constant}"] == 1, "every answer is as long as its reference"
    expected = np.mean([turn.rewards["bleu"] for one in scored for turn in one.answered if turn.reward is not None])
    assert row["reward/component{component=bleu}"] == pytest.approx(expected)


def test_a_missed_deadline_leaves_episodes_without_a_reward_and_says_why() -> None:
    rewards, dealt = Rewards(workers=1, batch_tokens=2 * TWO, deadline=0.001, retries=0), episodes(4)

    async def body(pool: RewardPool) -> list[Episode]:
        return await pool.score(dealt, {})

    scored = run(body, rewards)
    assert [one.status for one in scored] == ["failed"] * 4
    assert all(
        turn.reward is None and "waited 0.0 s for scoring 4 episodes" in str(turn.failure) for one in scored for turn in one.answered
    )
