"""How many turns a second rewards take: BLEU alone, all components together, and two reward workers
against one.

Texts are random tokens, 40 to 64 in an answer and as many in a reference, in Python lists as
episodes hold them; turning them into arrays is part of every figure. A turn has two BLEU scores of
order 4, against its reference and against the saved interaction, which share the counting of the
answer. Nothing here uses more than one thread of a process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import ray

from benchmarks.parts import Part, local_ray
from common.config.components import Bleu
from common.config.rewards import RewardMix, Rewards
from common.episode import Episode, Fact, Turn
from reward_service.components.bleu import bleu_of_pairs
from reward_service.components.tokens import Ragged
from reward_service.worker import RewardWorker

VOCABULARY, WIDTH = 1024, 128
SPECIAL = range(8)
ANSWERED = 4
"""Answered turns of each episode, after the opening one."""
MIX = RewardMix(bleu=Bleu(order=4, reference=0.4, saved=0.6))
"""All four components, each of their comparisons included."""
REWARDS = Rewards(single=MIX, cumulative=MIX, long_term=MIX)


class Effort(NamedTuple):
    """How much is measured."""

    pairs: int = 31
    """Repeats of one worker and two: many, and short, for the neighbours of a virtual machine come
    and go within seconds."""
    repeats: int = 51
    """Repeats of what takes milliseconds."""


QUICK = Effort(pairs=5, repeats=15)
CALLS, CALL_EPISODES = 24, 256
"""Calls per worker in one repeat, and episodes in each: enough for the last call, with which one
worker is alone, to be little of it."""


def parts(quick: bool) -> list[Part]:
    """The parts of `engram bench rewards`, in turns per second. Ray comes last: what it starts, and
    leaves behind for some seconds when it stops, would share the cores with the others."""
    pairs, repeats = QUICK if quick else Effort()
    return [
        Part(
            "BLEU alone",
            lambda: {
                f"bleu_turns_per_second_{turns}": bleu_rate(turns, repeats) for turns in (256, 16)
            },
        ),
        Part(
            "all components",
            lambda: {"composed_turns_per_second_256": composed_rate(256, repeats)},
        ),
        Part("one and two workers under Ray", lambda: worker_rates(pairs)),
    ]


def bleu_rate(turns: int, repeats: int) -> float:
    """Two BLEU-4 scores a turn, in batches of `turns`."""
    rng = np.random.default_rng(0)
    answers, references, saved = [[_tokens(rng) for _ in range(turns)] for _ in range(3)]
    return turns / _median_seconds(
        lambda: bleu_of_pairs(
            Ragged.of(answers), [Ragged.of(references), Ragged.of(saved)], 4, None, "method4"
        ),
        repeats,
    )


def composed_rate(turns: int, repeats: int) -> float:
    """Whole episodes in, a verdict on each turn out, by a worker without Ray around it."""
    episodes, worker = (
        _episodes(turns // ANSWERED, seed=0),
        RewardWorker(REWARDS, _embedding(), SPECIAL),
    )
    return turns / _median_seconds(lambda: worker.judge(episodes, {}), repeats)


@local_ray(cpus=2)
def worker_rates(pairs: int) -> dict[str, float]:
    """One and two reward workers, each with work of its own, and the second over the first. Starts
    a local Ray where none is connected.

    Episodes come from the object store and go back there, as between actors on a cluster: what is
    measured is the workers, not how fast one driver can unpickle for both.
    """
    actor: Any = ray.remote(RewardWorker).options(num_cpus=1)
    workers = [actor.remote(REWARDS, _embedding(), frozenset(SPECIAL)) for _ in range(2)]
    batches = [ray.put(_episodes(CALL_EPISODES, seed)) for seed in range(2)]

    def seconds(count: int) -> float:
        """Two calls in flight per worker, and the next to who is done with one, as from the pool of
        a run."""
        began = time.perf_counter()
        left, busy = count * CALLS, {}

        def deal(worker: int) -> None:
            busy[workers[worker].judge.remote(batches[worker], {})] = worker

        for i in range(2 * count):
            deal(i % count)
        left -= 2 * count
        while busy:
            done, _ = ray.wait(list(busy), num_returns=1, timeout=60, fetch_local=False)
            if not done:
                raise TimeoutError("a scoring call took more than 60 s")
            worker = busy.pop(done[0])
            if left:
                deal(worker)
                left -= 1
        return time.perf_counter() - began

    try:
        seconds(2)
        # In turn, and compared pair by pair, so that whatever else the machine does touches both
        # alike.
        measured = [(seconds(1), seconds(2)) for _ in range(pairs)]
    finally:
        for worker in workers:
            ray.kill(worker)
    turns = CALLS * CALL_EPISODES * ANSWERED
    one = statistics.median(turns / alone for alone, _ in measured)
    two = statistics.median(2 * turns / together for _, together in measured)
    return {
        "one_worker_turns_per_second": one,
        "two_workers_turns_per_second": two,
        "two_workers_over_one": statistics.median(
            2 * alone / together for alone, together in measured
        ),
    }


def _median_seconds(work: Callable[[], object], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _tokens(rng: np.random.Generator, low: int = 40, high: int = 64) -> list[int]:
    return rng.integers(len(SPECIAL), VOCABULARY, rng.integers(low, high + 1)).tolist()


def _text(tokens: list[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def _embedding() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((VOCABULARY, WIDTH)).astype(np.float32)


def _episodes(count: int, seed: int) -> list[Episode]:
    """Conversations in which every answered turn asks for a fact, the dearest case for recall."""
    rng = np.random.default_rng(seed)

    def turn(index: int) -> Turn:
        query, answer, reference = _tokens(rng, 10, 20), _tokens(rng), _tokens(rng)
        return Turn(
            query_ids=[2, 5, *query, 6],
            answer_ids=[*answer, 3],
            log_probs=[-1.0] * len(answer) if index else [],
            reference_ids=[*reference, 3],
            role="recall",
            facts=(Fact(f"w{answer[index]}", 0),) if index else (),
            query=_text(query),
            answer=_text(answer),
            reference=_text(reference),
        )

    return [
        Episode(f"{seed}-{i}", str(i), i, tuple(turn(t) for t in range(1 + ANSWERED)), 0)
        for i in range(count)
    ]
