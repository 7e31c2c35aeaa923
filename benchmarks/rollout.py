"""How fast rollout workers play, where their time goes, and what continuous batching gains over
lock-step.

The workload is benchmarks/workload.py's. There are two rates, both over whole conversations.
*Generation* is new tokens over all time but that in which memories are written: reading memory,
prompts, decoding, sampling and bookkeeping are in it. The other, `…_with_writes`, is over all time;
interactions per second are, too. Figures are medians over repeats; what is compared is measured
in turn, and compared pair by pair. Comparisons within one process are of CPU time, which the
neighbours of a virtual machine touch less.
"""

from __future__ import annotations

import random
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from benchmarks import rollout_gpu
from benchmarks.parts import Part, local_ray
from benchmarks.workload import (
    MOST_TOKENS,
    NEW_TOKENS,
    QUERY_TOKENS,
    VOCABULARY,
    WIDTH,
    LongTailed,
    TurnLockstep,
    make_engine,
    make_model,
    make_tasks,
    make_tokenizer,
    model_config,
    play_in_batches,
)  # fmt: skip
from common.config.rewards import Rewards
from common.config.rollout import Rollout, Sampling
from common.data.tokenizer import SPECIAL_TOKENS
from common.weights import pack
from reward_service.worker import RewardWorker
from rollout.policies.reactive.engine import ReactiveEngine
from rollout.policies.table import PolicyShape
from rollout.worker import RolloutWorker


class Effort(NamedTuple):
    """How much is measured."""

    repeats: int = 5
    pairs: int = 9
    """Repeats of one worker and two."""
    conversations: int = 256
    """For each worker that takes part in a measurement under Ray, in groups of as many as it has
    slots."""
    long_tailed: int = 1536
    """Conversations whose answers have a long tail."""


QUICK = Effort(repeats=2, pairs=3, conversations=64, long_tailed=512)
FOLLOW_UPS = 4
DEADLINE = 300.0


def parts(quick: bool) -> list[Part]:
    """The parts of `engram bench rollout`."""
    effort = QUICK if quick else Effort()
    return [
        *(
            Part(f"one engine, {slots} slots", on_one_thread(fixed_rate, slots, effort.repeats))
            for slots in (16, 64)
        ),
        *(
            Part(
                f"{slots} slots against the backend torch",
                on_one_thread(over_torch, slots, effort.repeats),
            )
            for slots in (16, 64)
        ),
        Part("late and early turns", on_one_thread(late_over_early_turn, effort.pairs)),
        Part(
            "continuous batching against lock-step",
            on_one_thread(long_tailed, effort.repeats, effort.long_tailed),
        ),
        Part("one and two workers under Ray", lambda: under_ray(effort)),
        Part("on a GPU", rollout_gpu.run),
    ]


def on_one_thread(
    measure: Callable[..., dict[str, float]], *arguments: int
) -> Callable[[], dict[str, float]]:
    def measured() -> dict[str, float]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return measure(*arguments)
        finally:
            torch.set_num_threads(threads)

    return measured


class Rate(NamedTuple):
    tokens: int
    seconds: float
    writing: float
    """Seconds of these in which memories were written."""

    @property
    def generation(self) -> float:
        """Tokens per second, memory writes left out."""
        return self.tokens / (self.seconds - self.writing)

    @property
    def with_writes(self) -> float:
        return self.tokens / self.seconds


def measured(
    engine: ReactiveEngine, work: Callable[[], object], clock: Callable[[], float]
) -> Rate:
    """What `engine` does in `work`, by a clock, which its phases are timed by as well."""
    timer = engine.timer
    timer.clock = clock
    tokens, writing, began = engine.tally.tokens, timer.seconds["write"], clock()
    work()
    return Rate(engine.tally.tokens - tokens, clock() - began, timer.seconds["write"] - writing)


# --- one engine, answers of one length ------------------------------------------------------------


def fixed_rate(slots: int, repeats: int) -> dict[str, float]:
    """Tokens per second of one engine with all slots in use, and the share of each phase, over
    conversations of 8 follow-ups."""
    engine, tasks = make_engine(slots), make_tasks([8] * slots)
    engine.run(make_tasks([1] * slots))
    phases = dict(engine.timer.seconds)
    rates, spent = [], 0.0
    for _ in range(repeats):
        rate = measured(engine, lambda: engine.run(tasks), time.perf_counter)
        rates.append(rate)
        spent += rate.seconds
    shares = {
        name: (seconds - phases.get(name, 0.0)) / spent
        for name, seconds in engine.timer.seconds.items()
    }
    shares["other"] = 1 - sum(shares.values())
    return {
        f"tokens_per_second_1_thread_{slots}": statistics.median(rate.generation for rate in rates),
        f"tokens_per_second_1_thread_{slots}_with_writes": statistics.median(
            rate.with_writes for rate in rates
        ),
    } | {f"share_{name}_{slots}": share for name, share in shares.items()}


def over_torch(slots: int, repeats: int) -> dict[str, float]:
    """How many times as fast as the backend `torch` the one that `auto` takes is, by CPU time: of
    generation, with writes, and of memory writes alone. Both are measured in turn."""
    tasks = make_tasks([4] * slots)
    taken, plain = make_engine(slots), make_engine(slots, backend="torch")
    ratios: defaultdict[str, list[float]] = defaultdict(list)
    for engine in (taken, plain):
        engine.run(tasks)
    for _ in range(repeats):
        fast, slow = (
            measured(engine, partial(engine.run, tasks), time.process_time)
            for engine in (taken, plain)
        )
        ratios[""].append(fast.generation / slow.generation)
        ratios["_with_writes"].append(fast.with_writes / slow.with_writes)
        ratios["_writes"].append(slow.writing / fast.writing)
    return {
        f"backend_over_torch_{slots}{name}": statistics.median(of) for name, of in ratios.items()
    }


# --- late and early turns -------------------------------------------------------------------------


class TurnClock(ReactiveEngine):
    """Notes when turns are over; with answers of one length, all slots' turns are over at once."""

    turns: list[tuple[float, float]]

    def _turn_over(self, ended: list[int]) -> None:
        super()._turn_over(ended)
        self.turns.append(
            (time.process_time(), float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
        )


def late_over_early_turn(repeats: int, late: int = 32, early: int = 2) -> dict[str, float]:
    """CPU time of answering turn `late` over that of turn `early`, memory write included, and the
    process's peak memory at both."""
    engine, tasks = make_engine(16, TurnClock), make_tasks([late + 1] * 16)
    assert isinstance(engine, TurnClock)
    engine.turns = []
    engine.run(tasks[:1])
    times, memory = [], []
    for _ in range(repeats):
        engine.turns = []
        engine.run(tasks)
        took = [
            after[0] - before[0]
            for before, after in zip(engine.turns, engine.turns[1:], strict=False)
        ]
        times.append(took[late - 1] / took[early - 1])
        memory.append(engine.turns[late][1] / engine.turns[early][1])
    return {
        "turn_32_over_turn_2": statistics.median(times),
        "turn_32_over_turn_2_memory": max(memory),
    }


# --- answers of all kinds of lengths --------------------------------------------------------------


def long_tailed(repeats: int, conversations: int, slots: int = 64) -> dict[str, float]:
    """Continuous batching against lock-step on conversations whose answers have a long tail: of 2
    to 8 follow-ups, but where said.

    continuous_over_lockstep: against batches of `slots` conversations that start together, every
    row waiting for the longest answer of its turn; rows whose conversation is over are not computed
    further. continuous_over_turn_lockstep: against rows that wait for the longest answer, but make
    room when their conversation is over. continuous_over_lockstep_4_follow_ups: as the first, on
    conversations of `FOLLOW_UPS`, which start and end together, as in a step of a curriculum. All
    are of generation, by CPU time; …_with_writes: with memory writes, which cost both ways of
    playing the same. slot_occupancy: rows that got a token over slots × steps, from the first step
    to the last of all conversations. Lock-step is measured on an eighth of the conversations, which
    is all the same to it; continuous batching on half of them, since its last conversations, when
    there is nothing left to take, are part of what it costs.
    """
    draw = random.Random(0)
    tasks, alike = (
        make_tasks([draw.randint(2, 8) for _ in range(conversations)]),
        make_tasks([FOLLOW_UPS] * (conversations // 2)),
    )
    half, eighth = tasks[: conversations // 2], tasks[: conversations // 8]
    alike_eighth = alike[: conversations // 8]
    continuous, lockstep = (
        make_engine(slots, kind, MOST_TOKENS) for kind in (LongTailed, TurnLockstep)
    )
    for engine in (continuous, lockstep):
        engine.run(tasks[:slots])
    ratios: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        free = measured(continuous, lambda: continuous.run(half), time.process_time)
        batches = measured(
            lockstep, lambda: play_in_batches(lockstep, eighth, slots), time.process_time
        )
        turns = measured(lockstep, lambda: lockstep.run(eighth), time.process_time)
        free_alike = measured(continuous, lambda: continuous.run(alike), time.process_time)
        batches_alike = measured(
            lockstep, lambda: play_in_batches(lockstep, alike_eighth, slots), time.process_time
        )
        for name, gone_on, waiting in (
            ("continuous_over_lockstep", free, batches),
            ("continuous_over_turn_lockstep", free, turns),
            (f"continuous_over_lockstep_{FOLLOW_UPS}_follow_ups", free_alike, batches_alike),
        ):
            ratios[name].append(gone_on.generation / waiting.generation)
            ratios[f"{name}_with_writes"].append(gone_on.with_writes / waiting.with_writes)
    rows, steps = continuous.tally.row_steps, continuous.tally.slot_steps
    rate = measured(continuous, lambda: continuous.run(tasks), time.process_time)
    return {name: statistics.median(of) for name, of in ratios.items()} | {
        "slot_occupancy": (continuous.tally.row_steps - rows)
        / (continuous.tally.slot_steps - steps),
        "long_tailed_tokens_per_second": rate.generation,
        "long_tailed_tokens_per_second_with_writes": rate.with_writes,
    }


# --- workers under Ray ----------------------------------------------------------------------------


def under_ray(effort: Effort) -> dict[str, float]:
    """Rollout workers of one thread each under Ray, conversations of 1 + 4 turns. Starts a local
    Ray where none is connected.

    two_workers_over_one: tokens per second of two against one, with 32 episodes in flight per
    worker, and with 64 (…_64), where the working sets of two no longer fit into the caches
    together. interactions_per_second_2_cores: answered interactions per second of two workers with
    64 episodes in flight each, memory writes and rewards included; …_unscored: without rewards.
    """
    with local_ray(cpus=2, megabytes=300):
        with _workers(32, effort.conversations) as seconds:
            narrow = statistics.median(2 * seconds(1) / seconds(2) for _ in range(effort.pairs))
        with _workers(64, effort.conversations) as seconds:
            wide = [(seconds(1), seconds(2)) for _ in range(effort.repeats)]
        with _workers(64, effort.conversations, rewards=True) as seconds:
            scored = [seconds(2) for _ in range(effort.repeats)]
    interactions = 2 * effort.conversations * FOLLOW_UPS
    return {
        "two_workers_over_one": narrow,
        "two_workers_over_one_64": statistics.median(2 * one / two for one, two in wide),
        "interactions_per_second_2_cores": interactions / statistics.median(scored),
        "interactions_per_second_2_cores_unscored": interactions
        / statistics.median(two for _, two in wide),
    }


@contextmanager
def _workers(
    slots: int, conversations: int, rewards: bool = False
) -> Iterator[Callable[[int], float]]:
    """Seconds that so many of two workers take for `conversations` each, in groups of `slots`.

    rewards: two reward workers score what they play. An idle one costs a hundredth of a core, so
    they are there only where asked for.
    """
    config = model_config(QUERY_TOKENS + NEW_TOKENS)
    shape = PolicyShape("reactive", config.to_dict(), make_tokenizer().to_json())
    rollout = Rollout(slots=slots, sampling=Sampling(max_new_tokens=NEW_TOKENS))
    player: Any = ray.remote(RolloutWorker).options(num_cpus=1)
    scorer: Any = ray.remote(RewardWorker).options(num_cpus=0)
    players = [player.remote(shape, rollout, "bench", i) for i in range(2)]
    embedding = np.random.default_rng(0).standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
    scorers = [
        scorer.remote(Rewards(), embedding, frozenset(range(len(SPECIAL_TOKENS))))
        for _ in range(2 * rewards)
    ]
    weights = ray.put(pack(make_model(QUERY_TOKENS + NEW_TOKENS).state_dict(), 0))
    batches = [ray.put(make_tasks([FOLLOW_UPS] * slots, seed)) for seed in range(2)]

    def seconds(count: int) -> float:
        """Who is done with a group takes the next one, as from the pool of a run: no worker waits
        for one whose core is slower."""
        began = time.perf_counter()
        left, busy, scored = count * conversations // slots, {}, []

        def deal(worker: int) -> None:
            episodes = players[worker].sample.remote(batches[worker], 0, None)
            busy[episodes] = worker
            if rewards:
                scored.append(scorers[worker].judge.remote(episodes, {}))

        for worker in range(count):
            deal(worker)
        while busy:
            done, _ = ray.wait(list(busy), num_returns=1, timeout=DEADLINE, fetch_local=False)
            if not done:
                raise TimeoutError(
                    f"a group of {slots} conversations took more than {DEADLINE:.0f} s"
                )
            worker, left = busy.pop(done[0]), left - 1
            if left >= count:
                deal(worker)
        _wait(scored)
        return time.perf_counter() - began

    try:
        _wait(
            [
                worker.sample.remote(batch, 0, weights)
                for worker, batch in zip(players, batches, strict=True)
            ]
        )
        seconds(2)
        yield seconds
    finally:
        for actor in (*players, *scorers):
            ray.kill(actor)


def _wait(calls: Sequence[Any]) -> None:
    if not calls:
        return
    done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=DEADLINE, fetch_local=False)
    if len(done) < len(calls):
        raise TimeoutError(
            f"{len(calls) - len(done)} of {len(calls)} calls took more than {DEADLINE:.0f} s"
        )
    ray.get(done)
