"""Reward workers are killed all the time, functions raise and hang, and every turn is accounted for once, for its own reason.

The figures in docs/reliability.md are of this test: `pytest tests/reward_service/test_reward_chaos.py -s` prints them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from common.config.rewards import Bleu, FunctionReward, RewardMix, Rewards
from common.episode import Episode, Turn
from reward_service.pool import RewardPool

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.timeout(600)]

SEED = 0
EPISODES, ANSWERED = 5000, 4
RAISING, HANGING = 0.01, 0.005
WORKERS = 10
"""More than two cores need for the work: waiting for turns that hang takes no CPU, and while some restart the others are enough."""
KILL_EVERY = 2.0
FUNCTION_DEADLINE = 1.5
"""Seconds for one turn. Healthy ones take microseconds, but on a busy machine a thread may stand still for a quarter of a second."""
BATCH_EPISODES = 5
"""Few, so that a kill costs little: a turn that hangs is waited for again when its batch is done again."""
OVERALL_SECONDS = 500.0

FUNCTION = """\
import time

def judge(turn):
    kind, _, name = turn.answer.partition("-")
    if kind == "raise":
        raise LookupError(f"no opinion of {name}")
    if kind == "hang":
        time.sleep(3600)
    return 0.5
"""


def workload() -> list[Episode]:
    """The kind of every turn stands in its answer, with the turn's own name."""
    rng = np.random.default_rng(SEED)
    turns = EPISODES * ANSWERED
    kinds = np.full(turns, "good", dtype=object)
    drawn = rng.permutation(turns)
    raising, hanging = round(RAISING * turns), round(HANGING * turns)
    kinds[drawn[:raising]], kinds[drawn[raising : raising + hanging]] = "raise", "hang"

    def turn(answer: str) -> Turn:
        query, words, reference = (rng.integers(8, 256, 12).tolist() for _ in range(3))
        return Turn(query, words, [], reference, query="?", answer=answer)

    return [
        Episode(f"e{i}", f"t{i}", i, (turn("opening"), *(turn(f"{kinds[i * ANSWERED + t]}-{i}.{t}") for t in range(ANSWERED))), 0)
        for i in range(EPISODES)
    ]


def settings(folder: Path) -> Rewards:
    file = folder / "judge.py"
    file.write_text(FUNCTION)
    judge = FunctionReward(name="judge", path=f"{file}:judge", deadline=FUNCTION_DEADLINE)
    mix = RewardMix(bleu=Bleu(), cosine=None, length=None, recall=None, functions=(judge,))
    tokens = BATCH_EPISODES * (1 + ANSWERED) * 36
    # A batch may be on a worker that is killed a few times over; the default of three tries more would do most of the time.
    return Rewards(single=mix, cumulative=mix, long_term=mix, workers=WORKERS, batch_tokens=tokens, retries=20)


class Killer:
    """Kills the workers in turn, each by the process id that it gave itself in its present life."""

    def __init__(self, actors: list[ActorHandle]):
        self._pids: list[int | None] = [None] * len(actors)
        self._asking = [asyncio.create_task(self._ask(i, actor)) for i, actor in enumerate(actors)]
        self.kills = 0

    async def _ask(self, place: int, actor: ActorHandle) -> None:
        """Keep the worker's id known. It answers as soon as it is back, before it is given work."""
        while True:
            if self._pids[place] is None:
                with contextlib.suppress(RayActorError, GetTimeoutError):
                    self._pids[place] = await asyncio.to_thread(ray.get, actor.apply.remote(lambda _: os.getpid()), timeout=60)
            await asyncio.sleep(0.05)

    async def ready(self) -> None:
        while None in self._pids:
            await asyncio.sleep(0.05)

    async def kill_in_turn(self) -> None:
        for place in itertools.cycle(range(len(self._pids))):
            await asyncio.sleep(KILL_EVERY)
            while (pid := self._pids[place]) is None:
                await asyncio.sleep(0.05)
            self._pids[place] = None
            os.kill(pid, signal.SIGKILL)
            self.kills += 1

    async def close(self) -> None:
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)


def expected(turn: Turn) -> str | None:
    """What must stand in the turn's failure; None where it must be scored."""
    kind, _, name = turn.answer.partition("-")
    if kind == "raise":
        return f"LookupError: no opinion of {name}\nraised for the turn with query '?' and answer '{turn.answer}'"
    if kind == "hang":
        return f"no value within {FUNCTION_DEADLINE} s for the turn with query '?' and answer '{turn.answer}'"
    return None


def check(dealt: list[Episode], scored: list[Episode]) -> None:
    """Every turn once, in place, scored or failed for the reason that is its own."""
    assert [(one.id, [turn.answer for turn in one.turns]) for one in scored] == [
        (one.id, [turn.answer for turn in one.turns]) for one in dealt
    ]
    for turn in (turn for one in scored for turn in one.answered):
        reason = expected(turn)
        if reason is None:
            assert turn.failure is None, turn.failure
            assert turn.reward is not None
            assert turn.rewards["judge"] == 0.5
        else:
            assert turn.reward is None
            assert turn.failure is not None
            assert turn.failure.startswith("judge: ")
            assert reason in turn.failure


def test_every_turn_is_accounted_for_once_while_workers_are_killed(tmp_path: Path) -> None:
    dealt = workload()
    turns = EPISODES * ANSWERED

    async def measured(pool: RewardPool) -> tuple[list[Episode], float]:
        began = time.perf_counter()
        scored = await pool.score(dealt, {})
        return scored, turns / (time.perf_counter() - began)

    async def main() -> tuple[list[Episode], float, list[Episode], float, int, dict[str, int]]:
        pool = RewardPool(settings(tmp_path), np.ones((256, 4), np.float32), range(8))
        killer = Killer(pool.actors)
        try:
            await killer.ready()
            undisturbed = await measured(pool)
            assert pool.stats()["infra_failures"] == 0
            killing = asyncio.create_task(killer.kill_in_turn())
            disturbed = await measured(pool)
            killing.cancel()
            return (*undisturbed, *disturbed, killer.kills, pool.stats())
        finally:
            await killer.close()
            await pool.close()

    undisturbed, calm, disturbed, harried, kills, stats = asyncio.run(asyncio.wait_for(main(), OVERALL_SECONDS))
    print(
        f"\n{calm:.0f} turns/s undisturbed, {harried:.0f} under {kills} kills, {harried / calm:.2f} of it; calls lost: {stats['retries']}"
    )
    check(dealt, undisturbed)
    check(dealt, disturbed)
    assert disturbed == undisturbed
    assert kills >= 3
    # Not all of them: that a worker is gone shows when it has a call, and the last ones killed may get none.
    assert stats["restored"] >= kills // 2
    assert harried >= 0.5 * calm
