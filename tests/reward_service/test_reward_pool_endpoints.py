"""Reward endpoints that are away or refuse, asked by a pool of workers on a real Ray."""

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import ray

from common.actors.resources import REWARD_WORKER_CPUS
from common.config.components import EndpointReward
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Turn
from common.failures import Unavailable
from common.telemetry.metrics import Metrics
from reward_service.pool import RewardPool
from tests.endpoints import Endpoint, Judge
from tests.reward_pools import (
    EMBEDDING,
    SPECIAL,
    TWO,
    episodes,
    lasting,
    run,
    sleeping,
    started,
    until,
)

pytestmark = pytest.mark.usefixtures("ray_local")


def test_an_endpoint_that_is_away_for_a_while_is_waited_for_and_costs_no_turn() -> None:
    judge, told = Judge(), list[str]()
    with contextlib.closing(Endpoint(judge)) as server:
        endpoint = EndpointReward(name="judge", url=server.url, deadline=2, patience=20)
        mix = RewardMix(bleu=None, cosine=None, recall=None, endpoints=(endpoint,))
        # Calls that waited themselves would be overdue.
        rewards = Rewards(cumulative=mix, workers=2, deadline=2.5, batch_tokens=TWO)

        async def body() -> tuple[list[Episode], list[Episode], dict[str, int]]:
            pool = RewardPool(rewards, EMBEDDING, SPECIAL, tell=told.append)
            try:
                await started(pool)
                judge.leave(5)
                scoring = asyncio.create_task(pool.score(episodes(12), {}))
                await until(lambda: bool(told))
                assert re.match(
                    rf"reward endpoint judge at {server.url} does not answer \(.* 503 .*\) for "
                    r"\d s",
                    pool.waiting_for()[0],
                )
                scored = await scoring
                judge.leave(0.5)
                return scored, await pool.score(episodes(4), {}), pool.stats()
            finally:
                await pool.close()

        scored, again, stats = asyncio.run(asyncio.wait_for(body(), 90))
    assert all(turn.rewards["judge"] == 1.0 for one in scored + again for turn in one.answered)
    assert judge.asked[-1] - judge.asked[0] > 2
    assert (stats["missed_deadlines"], stats["restored"], stats["retries"]) == (0, 0, 0)
    assert told[0].endswith("; waiting up to 20 s, for 0 s now")
    assert "answers again" in told[-1]


def test_an_endpoint_that_does_not_come_back_is_the_failure_of_no_turn() -> None:
    judge = Judge()
    judge.leave()
    with contextlib.closing(Endpoint(judge)) as server:
        endpoint = EndpointReward(name="judge", url=server.url, patience=1.5)
        rewards = Rewards(cumulative=RewardMix(endpoints=(endpoint,)), workers=1, batch_tokens=TWO)

        async def body(pool: RewardPool) -> None:
            with pytest.raises(Unavailable, match=r"503 .*, and was waited for \d s"):
                await pool.score(episodes(6), {})
            judge.come_back()
            scored = await pool.score(episodes(6), {})
            assert all(turn.reward is not None for one in scored for turn in one.answered)
            metrics = Metrics()
            metrics.merge(await pool.metrics())
            row = metrics.flush(step=0, stage="test")
            assert row["reward/turns"] == 18
            assert not [key for key in row if key.startswith("reward/failed_turns")]

        run(body, rewards)


def test_turns_that_an_endpoint_refuses_fail_and_nothing_waits_for_it() -> None:
    def refusing(request: dict[str, Any]) -> tuple[int, Any]:
        bad = any(turn["answer"] == "bad" for turn in request["turns"])
        return (500, {}) if bad else (200, {"rewards": [1.0] * len(request["turns"])})

    def episode(name: str, *answers: str) -> Episode:
        opening, *turns = [Turn([9], [10], [], [10], answer=answer) for answer in ("", *answers)]
        return Episode(name, name, 0, (opening, *turns), 0)

    told: list[str] = []
    with contextlib.closing(Endpoint(refusing)) as server:
        endpoint = EndpointReward(name="judge", url=server.url)
        rewards = Rewards(
            cumulative=RewardMix(bleu=None, cosine=None, recall=None, endpoints=(endpoint,)),
            retries=1,
        )

        async def body() -> tuple[list[Episode], list[Episode], dict[str, int]]:
            pool = RewardPool(rewards, EMBEDDING, SPECIAL, tell=told.append)
            try:
                never = await pool.score([episode("a", "bad"), episode("b", "bad", "bad")], {})
                return (
                    never,
                    await pool.score(
                        [episode("c", "bad"), episode("d", "good", "bad", "good")], {}
                    ),
                    pool.stats(),
                )
            finally:
                await pool.close()

        never, others, stats = asyncio.run(asyncio.wait_for(body(), 90))
    assert [one.status for one in never] == ["unscored"] * 2
    why = (
        rf"Unavailable: reward endpoint judge at {server.url} fails \(it answered 500 "
        r"Internal Server Error\)"
    )
    assert all(re.fullmatch(why, str(turn.failure)) for one in never for turn in one.answered)
    assert [[turn.reward for turn in one.answered] for one in others] == [[None], [1.0, None, 1.0]]
    assert others[1].answered[1].failure == "judge: it answered 500 Internal Server Error"
    assert told == []
    assert (stats["restored"], stats["missed_deadlines"]) == (0, 0)
    assert stats["calls"] == 1 + 2 * 2 + 1, (
        "both, and each alone twice; and then nothing had to be divided here"
    )


def test_a_worker_that_finds_no_place_on_the_cluster_holds_nothing_up(tmp_path: Path) -> None:
    rewards, dealt = (
        sleeping(tmp_path, workers=1, max_workers=3, queue_seconds=0.5, batch_tokens=4),
        lasting([0.1] * 40),
    )

    async def body(pool: RewardPool) -> tuple[list[Episode], dict[str, int]]:
        await started(pool)
        rest = ray.available_resources()["CPU"] - REWARD_WORKER_CPUS / 2
        claim = ray.util.placement_group([{"CPU": rest}])
        try:
            assert claim.wait(60)
            scoring = asyncio.create_task(pool.score(dealt, {}))
            await until(lambda: pool.stats()["starting"] == 1)
            scored = await scoring
            stats = pool.stats()
        finally:
            ray.util.remove_placement_group(claim)
        return scored, stats

    scored, stats = run(body, rewards)
    assert [one.answered[0].reward for one in scored] == [1.0] * 40
    assert (stats["healthy"], stats["starting"], stats["dead"], stats["added"]) == (1, 1, 0, 1)
    assert (stats["retries"], stats["infra_failures"], stats["missed_deadlines"]) == (0, 0, 0)
