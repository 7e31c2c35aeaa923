"""Episodes and pools of reward workers for tests on a real Ray."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from common.config.components import FunctionReward
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Fact, Turn
from reward_service.pool import RewardPool

EMBEDDING = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)

SPECIAL = range(8)

TWO = 2 * 4 * 90
"""Tokens of two of the episodes below."""

SLEEPING = """\
import os, signal, time

def sleeping(turn):
    seconds = float(turn.answer)
    time.sleep(abs(seconds))
    if seconds < 0:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    with open(__file__ + ".order", "a") as order:
        print(turn.answer, file=order)
    return 1.0
"""


def episodes(count: int) -> list[Episode]:
    rng = np.random.default_rng(1)

    def tokens() -> list[int]:
        return rng.integers(8, 64, 30).tolist()

    def turn(index: int) -> Turn:
        return Turn(
            tokens(),
            tokens(),
            [],
            tokens(),
            facts=(Fact("Rex", 0),) if index == 2 else (),
            answer="Rex",
        )

    return [Episode(f"e{i}", f"t{i}", i, tuple(turn(t) for t in range(4)), 0) for i in range(count)]


def sleeping(folder: Path, **settings: Any) -> Rewards:
    """Length and a function: every turn scores 1 after the seconds that its answer says, and ends
    the worker where they are negative."""
    file = folder / "sleeping.py"
    file.write_text(SLEEPING)
    function = FunctionReward(name="sleeping", path=f"{file}:sleeping", deadline=600)
    mix = RewardMix(bleu=None, cosine=None, recall=None, functions=(function,))
    return Rewards(single=mix, cumulative=mix, long_term=mix, **settings)


def lasting(seconds: Sequence[float]) -> list[Episode]:
    """Episodes of one answered turn, which takes so long to score."""
    opening = Turn([9], [10], [], [10])
    return [
        Episode(f"e{i}", f"t{i}", i, (opening, Turn([9], [10], [], [10], answer=str(s))), 0)
        for i, s in enumerate(seconds)
    ]


async def started(pool: RewardPool) -> list[int]:
    """Waits for the workers that there are; their pids, from themselves: titles and tables may name
    another run's."""
    pids: list[int] = await asyncio.to_thread(
        ray.get, [actor.apply.remote(lambda _: os.getpid()) for actor in pool.actors], timeout=60
    )
    return pids


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def run(body: Callable[[RewardPool], Coroutine[Any, Any, Any]], rewards: Rewards) -> Any:
    async def main() -> Any:
        pool = RewardPool(rewards, EMBEDDING, SPECIAL)
        try:
            return await body(pool)
        finally:
            await pool.close()

    return asyncio.run(asyncio.wait_for(main(), 90))
