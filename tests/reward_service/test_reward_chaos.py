"""Reward workers killed every two seconds, a component that raises and hangs: 20,000 turns, each accounted for once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from common.config.schema import FunctionReward, RewardMix, Rewards
from common.episode import Episode, Turn
from reward_service.pool import RewardPool

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.slow, pytest.mark.timeout(300)]

EPISODES, ANSWERED, WORKERS = 5000, 4, 6
RAISES, HANGS = 100, 200
"""One turn in so many."""
FUNCTION = f"""\
import time
def judge(turn, chaos):
    number = int(turn.query)
    if chaos and number % {RAISES} == 1:
        raise ValueError(f"no judgement of {{number}}")
    time.sleep(60 if chaos and number % {HANGS} == 2 else 0.003)
    return number
"""


def episodes() -> list[Episode]:
    def turn(number: int) -> Turn:
        return Turn([2, 5, 9, 6], [10, 11, 3], [-1.0] * 3, [10, 3], query=str(number), answer="yes")

    opening = Turn([2, 5, 9, 6], [10, 3], [], [10, 3], role="remember")
    return [Episode(f"e{i}", f"t{i}", i, (opening, *(turn(i * ANSWERED + k) for k in range(ANSWERED))), 0) for i in range(EPISODES)]


async def score(folder: Path, chaos: bool) -> tuple[list[Episode], float, int]:
    """Scored episodes, the seconds it took, and how many workers were killed meanwhile."""
    file = folder / "judge.py"
    file.write_text(FUNCTION)
    judge = FunctionReward(name="judge", path=f"{file}:judge", arguments={"chaos": chaos}, deadline=0.25)
    mix = RewardMix(bleu=None, cosine=None, length=None, recall=None, functions=(judge,))
    rewards = Rewards(single=mix, cumulative=mix, long_term=mix, workers=WORKERS, batch=16, deadline=60, retries=8)
    pool = RewardPool(rewards, np.eye(16, dtype=np.float32), range(8))
    killed = 0
    draw = random.Random(0)

    async def kill_now_and_then() -> None:
        nonlocal killed
        while True:
            await asyncio.sleep(2)
            actor = draw.choice(pool.actors)
            try:
                pid: Any = await asyncio.to_thread(ray.get, actor.apply.remote(lambda _: os.getpid()), timeout=30)
            except ray.exceptions.RayError:
                continue  # it has not come back from the last time yet
            os.kill(pid, signal.SIGKILL)
            killed += 1

    try:
        dealt = episodes()
        await pool.score(dealt[: 2 * WORKERS])  # every worker is up
        began = time.monotonic()
        killer = asyncio.create_task(kill_now_and_then()) if chaos else None
        scored = await pool.score(dealt)
        seconds = time.monotonic() - began
        if killer is not None:
            killer.cancel()
    finally:
        await pool.close()
    return scored, seconds, killed


def test_every_turn_is_accounted_for_with_its_true_reason(tmp_path: Path) -> None:
    calm, undisturbed, _ = asyncio.run(score(tmp_path, chaos=False))
    assert all(turn.reward is not None for one in calm for turn in one.answered)
    scored, disturbed, killed = asyncio.run(score(tmp_path, chaos=True))
    print(f"{EPISODES * ANSWERED} turns in {undisturbed:.1f} s undisturbed, {disturbed:.1f} s with {killed} workers killed")

    assert [one.id for one in scored] == [one.id for one in calm]
    ends: Counter[str] = Counter()
    for one in scored:
        for turn in one.answered:
            number = int(turn.query)
            if number % RAISES == 1:
                assert turn.reward is None
                assert f"ValueError: no judgement of {number}" in str(turn.failure)
                ends["raised"] += 1
            elif number % HANGS == 2:
                assert turn.reward is None
                assert str(turn.failure).startswith(f"judge: no value within 0.25 s for the turn with query '{number}'")
                ends["hung"] += 1
            else:
                assert (turn.reward, turn.failure) == (float(number), None)
                ends["scored"] += 1
    turns = EPISODES * ANSWERED
    assert ends == {"raised": turns // RAISES, "hung": turns // HANGS, "scored": turns - turns // RAISES - turns // HANGS}
    assert killed >= 3
    assert disturbed < 2 * undisturbed
