"""The reward pool on a real local Ray."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config.components import EndpointReward, FunctionReward
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Turn
from common.telemetry.metrics import Metrics
from reward_service.autoscaler import IDLE_OVER_QUEUE
from reward_service.compose import score_episodes
from reward_service.pool import RewardPool
from tests.endpoints import Endpoint
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

RELOADED = """\
import time
time.sleep(3)

def hanging(turn):
    time.sleep(600 if turn.answer == "hang" else 0)
    return 1.0
"""


def test_every_episode_is_scored_once_though_a_worker_is_killed_meanwhile() -> None:
    rewards, dealt = Rewards(workers=2, batch_tokens=TWO), episodes(600)

    async def body(pool: RewardPool) -> tuple[list[Episode], dict[str, int]]:
        pid, _ = await started(pool)
        scoring = asyncio.create_task(pool.score(dealt, {}))
        await until(lambda: pool.stats()["calls"] >= 30)
        os.kill(pid, signal.SIGKILL)
        scored = await scoring
        await until(lambda: pool.stats()["healthy"] == 2)
        return scored, pool.stats()

    scored, stats = run(body, rewards)
    assert stats["infra_failures"] >= 1
    assert stats["restored"] == 1
    assert scored == score_episodes(dealt, rewards, EMBEDDING, SPECIAL)
    assert all(turn.reward is not None for one in scored for turn in one.answered)


def test_an_episode_that_no_worker_can_take_is_alone_in_failing_and_is_counted() -> None:
    rewards, dealt = Rewards(workers=1, batch_tokens=4 * TWO), episodes(16)
    dealt[5] = replace(dealt[5], strategy="backwards")  # type: ignore[arg-type]

    async def body(pool: RewardPool) -> tuple[list[Episode], dict[str, Any]]:
        scored = await pool.score(dealt, {})
        metrics = Metrics()
        assert pool.after({}, scored) == {}
        metrics.merge(await pool.metrics())
        assert not any("alarms" in key for key in metrics.state()), "`after` records nothing"
        pool.observe({}, scored)
        metrics.merge(await pool.metrics())
        return scored, metrics.drain()

    scored, state = run(body, rewards)
    assert [one.id for one in scored] == [one.id for one in dealt]
    assert [one.id for one in scored if one.status == "unscored"] == ["e5"]
    assert [turn.reward for turn in scored[5].answered] == [None] * 3
    assert "KeyError" in str(scored[5].turns[1].failure)

    metrics = Metrics()
    metrics.merge(state)
    row = metrics.flush(step=0, stage="test")
    assert row["reward/turns"] == 15 * 3
    assert row["reward/failed_turns{reason=DataFailure}"] == 3
    assert row["reward/component{component=recall}"] == 1.0
    assert row["reward/alarms{component=length,kind=constant}"] == 1, (
        "every answer is as long as its reference"
    )
    expected = np.mean(
        [turn.rewards["bleu"] for one in scored for turn in one.answered if turn.reward is not None]
    )
    assert row["reward/component{component=bleu}"] == pytest.approx(expected)


def test_where_no_worker_is_in_time_every_episode_is_without_a_reward_and_says_why() -> None:
    rewards, dealt = Rewards(workers=1, batch_tokens=TWO, deadline=0.0001, retries=0), episodes(2)

    async def body(pool: RewardPool) -> list[Episode]:
        return await pool.score(dealt, {})

    scored = run(body, rewards)
    assert [one.id for one in scored] == [one.id for one in dealt]
    assert [one.status for one in scored] == ["unscored"] * 2
    assert all(
        turn.reward is None and "waited 0.0 s for" in str(turn.failure)
        for one in scored
        for turn in one.answered
    )


def test_an_episode_that_takes_too_long_is_alone_in_failing() -> None:
    def slow(request: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(float(request["turns"][0]["answer"]))
        return 200, {"rewards": [1.0]}

    dealt = lasting([0, 0, 1.5, 0])
    dealt[2] = replace(
        dealt[2], turns=(*dealt[2].turns, *dealt[2].turns[1:] * 5)
    )  # each turn is in time, all six are not
    with contextlib.closing(Endpoint(slow)) as server:
        endpoint = EndpointReward(name="slow", url=server.url, deadline=3.9, batch=1)
        mix = RewardMix(bleu=None, cosine=None, length=None, recall=None, endpoints=(endpoint,))
        rewards = Rewards(cumulative=mix, workers=2, deadline=4, retries=1)

        async def body(pool: RewardPool) -> tuple[list[Episode], dict[str, int]]:
            await started(pool)
            return await pool.score(dealt, {}), pool.stats()

        scored, stats = run(body, rewards)
    assert [one.answered[0].reward for one in scored] == [1.0, 1.0, None, 1.0]
    assert re.match(
        r"CallOverdue: waited 4\.0 s for scoring 1 episodes from e2",
        str(scored[2].answered[0].failure),
    )
    # Once with all four, once with two, and twice alone.
    assert stats["missed_deadlines"] == 4


def test_a_turn_that_has_a_function_loaded_again_does_not_make_the_call_overdue(
    tmp_path: Path,
) -> None:
    file = tmp_path / "reloaded.py"
    file.write_text(RELOADED)
    function = FunctionReward(name="hanging", path=f"{file}:hanging", deadline=1.5)
    # Far less than the late turn and loading take; far more than the rest.
    rewards = Rewards(
        cumulative=RewardMix(
            bleu=None, cosine=None, length=None, recall=None, functions=(function,)
        ),
        deadline=3,
    )
    opening = Turn([9], [10], [], [10])
    turns = [Turn([9], [10], [], [10], answer=answer) for answer in ("a", "hang", "b")]

    async def body(pool: RewardPool) -> tuple[list[Episode], dict[str, int]]:
        return await pool.score([Episode("e", "t", 0, (opening, *turns), 0)], {}), pool.stats()

    (scored,), stats = run(body, rewards)
    assert [turn.reward for turn in scored.answered] == [1.0, None, 1.0]
    assert str(scored.answered[1].failure).startswith("hanging: no value within 1.5 s")
    assert (stats["missed_deadlines"], stats["restored"]) == (0, 0)


def test_an_episode_that_ends_its_worker_is_alone_in_failing(tmp_path: Path) -> None:
    # One worker: everything else stands behind that episode, again and again.
    rewards = sleeping(tmp_path, workers=1, retries=1)

    async def body(pool: RewardPool) -> tuple[list[Episode], dict[str, int]]:
        await started(pool)
        return await pool.score(lasting([0, 0, -0.5, 0]), {}), pool.stats()

    scored, stats = run(body, rewards)
    assert [one.answered[0].reward for one in scored] == [1.0, 1.0, None, 1.0]
    assert re.match(
        r"CallLost: scoring 1 episodes from e2 on actor 0 of pool rewards: \w+",
        str(scored[2].answered[0].failure),
    )
    # With all four, with e3, and twice alone. The half second before it is so that no answer to e3
    # is on its way, to be lost as well.
    assert stats["restored"] + stats["dead"] + stats["restarting"] == 4
    assert stats["missed_deadlines"] == 0


def test_the_slowest_call_is_named_with_its_episode_and_component(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewards = sleeping(tmp_path, workers=1, batch_tokens=4)

    async def body(pool: RewardPool) -> None:
        await started(pool)
        # The last stands behind the slow one for longer than it takes.
        await pool.score(lasting([0.1, 1.5, 1.1]), {})
        await pool.score(lasting([2.4]), {})

    with caplog.at_level(logging.INFO, "reward_service.pool"):
        run(body, rewards)
    said = [record.getMessage() for record in caplog.records]
    assert [re.sub(r"\d\.\d s", "S", line) for line in said] == [
        f"the slowest scoring call so far took S, sleeping S of them: {name}"
        for name in ("e1", "e0")
    ]


def test_the_halves_of_a_lost_batch_go_before_those_that_have_had_no_try(tmp_path: Path) -> None:
    rewards, seconds = (
        sleeping(tmp_path, workers=1, retries=1, batch_tokens=2 * 6),
        [-0.5, *(i / 1000 for i in range(1, 12))],
    )

    async def body(pool: RewardPool) -> list[Episode]:
        await started(pool)
        return await pool.score(lasting(seconds), {})

    scored = run(body, rewards)
    assert [one.id for one in scored if one.status == "unscored"] == ["e0"]
    order = [float(line) for line in (tmp_path / "sleeping.py.order").read_text().split()]
    # The other half, and the batch that was sent already and stood behind it.
    assert max(map(order.index, seconds[1:4])) < min(map(order.index, seconds[4:]))


def test_where_every_episode_ends_its_worker_dividing_comes_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = sleeping(tmp_path, workers=2, retries=2)
    # In place of 4 (2 + 3): a death takes two seconds.
    monkeypatch.setattr(RewardPool, "_may_cost", lambda pool, batch: 4)

    async def body(pool: RewardPool) -> tuple[list[Episode], dict[str, int]]:
        await started(pool)
        return await pool.score(lasting([-0.001] * 4), {}), pool.stats()

    scored, stats = run(body, rewards)
    assert all(str(one.answered[0].failure).startswith("CallLost: scoring ") for one in scored)
    # Divided to the last and each tried three times, they would cost 3 + 12. After the fourth, what
    # is left has a try each.
    assert 4 <= stats["restored"] + stats["dead"] + stats["restarting"] <= 4 + 3


def test_the_pool_grows_while_batches_wait_and_shrinks_when_idle_and_scores_every_episode_once(
    tmp_path: Path,
) -> None:
    rewards, dealt = (
        sleeping(tmp_path, workers=1, max_workers=3, queue_seconds=0.1, batch_tokens=4),
        lasting([0.1] * 200),
    )
    metrics = Metrics()

    async def body(pool: RewardPool) -> tuple[list[list[Episode]], dict[str, Any]]:
        await started(pool)
        # A worker takes seconds to start and to load its function, on a busy machine more than one
        # round of these.
        scoring: list[asyncio.Task[list[Episode]]] = []
        while pool.stats()["healthy"] < 3:
            if all(task.done() for task in scoring):
                scoring.append(asyncio.create_task(pool.score(dealt, {})))
            await asyncio.sleep(0.02)
        scored = await asyncio.gather(*scoring)
        idle = time.monotonic()
        await until(lambda: pool.stats()["actors"] == 1)
        assert time.monotonic() - idle > IDLE_OVER_QUEUE * 0.1 / 2
        # The one that is left serves, and what the others recorded has not gone with them.
        assert (await pool.score(dealt[:1], {}))[0].answered[0].reward == 1.0
        metrics.merge(await pool.metrics())
        return scored, pool.stats()

    rounds, stats = run(body, rewards)
    for scored in rounds:
        assert [one.id for one in scored] == [one.id for one in dealt]
        assert [one.answered[0].reward for one in scored] == [1.0] * 200
    assert (stats["calls"], stats["added"], stats["ended"]) == (
        200 * len(rounds) + 1 + 2 * 3,
        2,
        2,
    )  # each was prepared, and asked for its metrics
    assert (stats["retries"], stats["restored"], stats["infra_failures"]) == (0, 0, 0)
    row = metrics.flush(step=0, stage="test")
    assert row["reward/turns"] == 200 * len(rounds) + 1
    assert row["reward/batch_turns:max"] == 1
    assert row["reward/batch_seconds:p95"] >= row["reward/batch_seconds:p50"] >= 0.1
    assert row["reward/queue_seconds:max"] > 1
