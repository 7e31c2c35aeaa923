"""The reward service while its workers are killed: is every turn accounted for once, for its own
reason, and at what rate?

Turns go through a `RewardPool` twice, undisturbed and with a worker killed by SIGKILL every few
seconds. A user's function raises on some of them and hangs on others. The figures in
docs/reliability.md are of `engram bench reward_chaos`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from benchmarks.parts import Part, local_ray
from common.config.components import Bleu, FunctionReward
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Turn
from reward_service.pool import RewardPool

VOCABULARY, SPECIAL = 256, range(8)
BATCH_EPISODES = 5
"""Few, so that a kill costs little: a turn that hangs is waited for again with its part of the
batch."""
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


@dataclass(frozen=True)
class Chaos:
    """What is scored, and what happens meanwhile. Times in seconds."""

    episodes: int = 5000
    answered: int = 4
    """Answered turns of each episode, after the opening one."""
    raising: float = 0.01
    hanging: float = 0.005
    """Shares of the turns."""
    workers: int = 10
    """More than two cores need for the work: waiting for turns that hang takes no CPU, and while
    some restart the others are enough."""
    kill_every: float = 2.0
    kills: int | None = None
    """At most; None: until all is scored, which a machine that restarts workers more slowly than
    they are killed never comes to."""
    function_deadline: float = 1.5
    """For one turn. Healthy ones take microseconds, but on a busy machine a thread may stand still
    for a quarter of a second."""
    seed: int = 0

    @property
    def turns(self) -> int:
        return self.episodes * self.answered

    def workload(self) -> list[Episode]:
        """The kind of every turn stands in its answer, with the turn's own name."""
        rng = np.random.default_rng(self.seed)
        kinds = np.full(self.turns, "good", dtype=object)
        drawn = rng.permutation(self.turns)
        raising, hanging = round(self.raising * self.turns), round(self.hanging * self.turns)
        kinds[drawn[:raising]], kinds[drawn[raising : raising + hanging]] = "raise", "hang"

        def turn(answer: str) -> Turn:
            query, words, reference = (
                rng.integers(len(SPECIAL), VOCABULARY, 12).tolist() for _ in range(3)
            )
            return Turn(query, words, [], reference, query="?", answer=answer)

        def episode(i: int) -> Episode:
            answers = [f"{kinds[i * self.answered + t]}-{i}.{t}" for t in range(self.answered)]
            return Episode(f"e{i}", f"t{i}", i, (turn("opening"), *map(turn, answers)), 0)

        return [episode(i) for i in range(self.episodes)]

    def pool(self, folder: Path) -> RewardPool:
        """A pool whose function is a file in `folder`, outside the project as a user's would be."""
        file = folder / "judge.py"
        file.write_text(FUNCTION)
        judge = FunctionReward(name="judge", path=f"{file}:judge", deadline=self.function_deadline)
        mix = RewardMix(bleu=Bleu(), cosine=None, length=None, recall=None, functions=(judge,))
        tokens = BATCH_EPISODES * (1 + self.answered) * 36
        # An episode may be on workers that are killed a few times over; the default of three tries
        # more would do most of the time.
        rewards = Rewards(
            single=mix,
            cumulative=mix,
            long_term=mix,
            workers=self.workers,
            batch_tokens=tokens,
            retries=20,
        )
        return RewardPool(rewards, np.ones((VOCABULARY, 4), np.float32), SPECIAL)

    def expected(self, turn: Turn) -> str | None:
        """What must stand in the turn's failure; None where it must be scored."""
        kind, _, name = turn.answer.partition("-")
        if kind == "raise":
            return (
                f"LookupError: no opinion of {name}\nraised for the turn with query '?' and "
                f"answer '{turn.answer}'"
            )
        if kind == "hang":
            return (
                f"no value within {self.function_deadline:g} s for the turn with query '?' "
                f"and answer '{turn.answer}'"
            )
        return None

    def unaccounted(self, dealt: Sequence[Episode], scored: Sequence[Episode]) -> list[str]:
        """What is wrong with what came back: turns missing, doubled or out of place, or whose
        reward or failure is not their own."""
        names, came = (
            [(one.id, [turn.answer for turn in one.turns]) for one in each]
            for each in (dealt, scored)
        )
        if names != came:
            return [
                f"{len(scored)} of {len(dealt)} episodes came back, or not each with its turns "
                "in its place"
            ]
        wrong = []
        for turn in (turn for one in scored for turn in one.answered):
            reason = self.expected(turn)
            if reason is None:
                right = (
                    turn.failure is None
                    and turn.reward is not None
                    and turn.rewards["judge"] == 0.5
                )
            else:
                right = (
                    turn.reward is None
                    and (turn.failure or "").startswith("judge: ")
                    and reason in (turn.failure or "")
                )
            if not right:
                wrong.append(f"{turn.answer}: reward {turn.reward}, failure {turn.failure!r}")
        return wrong


class Killer:
    """Kills the workers in turn, each by the process id that it gave itself in its present life."""

    def __init__(self, actors: list[ActorHandle], every: float, most: int | None):
        self._pids: list[int | None] = [None] * len(actors)
        self._asking = [asyncio.create_task(self._ask(i, actor)) for i, actor in enumerate(actors)]
        self._every, self._most = every, most
        self.kills = 0

    async def _ask(self, place: int, actor: ActorHandle) -> None:
        """Keep the worker's id known. It answers as soon as it is back, before it is given work."""
        while True:
            if self._pids[place] is None:
                with contextlib.suppress(RayActorError, GetTimeoutError):
                    self._pids[place] = await asyncio.to_thread(
                        ray.get, actor.apply.remote(lambda _: os.getpid()), timeout=60
                    )
            await asyncio.sleep(0.05)

    async def ready(self) -> None:
        while None in self._pids:
            await asyncio.sleep(0.05)

    async def kill_in_turn(self) -> None:
        for place in itertools.islice(itertools.cycle(range(len(self._pids))), self._most):
            await asyncio.sleep(self._every)
            while (pid := self._pids[place]) is None:
                await asyncio.sleep(0.05)
            self._pids[place] = None
            os.kill(pid, signal.SIGKILL)
            self.kills += 1

    async def close(self) -> None:
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)


def parts(quick: bool) -> list[Part]:
    """The parts of `engram bench reward_chaos`."""
    chaos = Chaos(episodes=600, kills=4) if quick else Chaos()
    return [Part("undisturbed, then with workers killed", lambda: run(chaos))]


def run(chaos: Chaos) -> dict[str, float]:
    """Rates of both parts, and what was killed. Starts a local Ray for its duration where none is
    connected.

    Raises RuntimeError where a turn is not accounted for, or the two parts do not agree on every
    reward; TimeoutError where both take more than `OVERALL_SECONDS`.
    """
    # Places for all workers: most of them wait.
    with local_ray(cpus=chaos.workers), tempfile.TemporaryDirectory() as folder:
        return asyncio.run(asyncio.wait_for(_both_parts(chaos, Path(folder)), OVERALL_SECONDS))


async def _both_parts(chaos: Chaos, folder: Path) -> dict[str, float]:
    dealt = chaos.workload()
    pool = chaos.pool(folder)
    killer = Killer(pool.actors, chaos.kill_every, chaos.kills)

    async def measured() -> tuple[list[Episode], float]:
        began = time.perf_counter()
        scored = await pool.score(dealt, {})
        rate = chaos.turns / (time.perf_counter() - began)
        if wrong := chaos.unaccounted(dealt, scored):
            raise RuntimeError(
                f"{len(wrong)} of {chaos.turns} turns are not accounted for, the first: {wrong[0]}"
            )
        return scored, rate

    try:
        await killer.ready()
        undisturbed, calm = await measured()
        killing = asyncio.create_task(killer.kill_in_turn())
        disturbed, harried = await measured()
        killing.cancel()
        if disturbed != undisturbed:
            raise RuntimeError("kills changed rewards")
        stats = pool.stats()
    finally:
        await killer.close()
        await pool.close()
    return {
        "undisturbed_turns_per_second": calm,
        "disturbed_turns_per_second": harried,
        "disturbed_over_undisturbed": harried / calm,
        "kills": killer.kills,
        "calls_lost": stats["infra_failures"],
        "workers_restored": stats["restored"],
    }
