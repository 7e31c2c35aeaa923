"""A conductor with small workers and a scorer, for tests on a real Ray."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.actor import ActorHandle

from common.actors.actor import PooledActor
from common.config.run import Run
from common.episode import Episode, Interaction, Memory, Row, Task, Turn
from common.failures import DataFailure
from common.seeding import uniforms
from common.storage.run_directory import RunDirectory
from common.weights import PackedWeights, WeightsCorrupt, pack, unpack
from rollout.conductor import Batch, Conductor
from rollout.tasks import Plan, Selection

STAGES = [{"stage": "joint_lm", "steps": 1, "batch_size": 1}]

PLAN = Plan("warm", (Selection(2),), episodes=12)


@ray.remote(num_cpus=0.1, max_restarts=-1, max_task_retries=0)
class Worker(PooledActor):
    """log: a file that gets a line "pid event" for everything it does."""

    def __init__(self, log: Path):
        self.log = log
        self.loaded: tuple[int, int] | None = None
        self.scale = 0.0

    def metrics(self) -> dict[str, Any]:
        return {}

    def note(self, event: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()} {event}\n")

    def set_weights(self, packed: PackedWeights) -> int:
        self.load(packed)
        self.note(f"loaded {packed.version}")
        return packed.version

    def load(self, packed: PackedWeights) -> None:
        try:
            self.scale = float(unpack(packed)["scale"])
        except WeightsCorrupt:
            self.note("refused")
            raise
        self.loaded = (packed.version, packed.digest)

    def sample(self, tasks: list[Task], version: int, packed: PackedWeights) -> list[Episode]:
        if self.loaded != (version, packed.digest):
            self.load(packed)
            self.note("healed itself")
        self.note(f"samples with {version}")
        return [self.play(task, version) for task in tasks]

    def play(self, task: Task, version: int) -> Episode:
        match task.row.query:
            case "poison":
                raise DataFailure("this row cannot be played")
            case "hang":
                time.sleep(600)
            case "slow":
                time.sleep(0.1)
        opening = Turn([1], [], [], [2], role="remember")
        draws = uniforms(np.full(3, task.seed), np.arange(3))
        answers = [
            Turn(
                [1],
                [int(draw * 100)],
                [float(draw) * self.scale],
                [2],
                query=task.row.query,
                done=i == 2,
            )
            for i, draw in enumerate(draws)
        ]
        before = task.initial_memory.data if task.initial_memory is not None else b""
        final = (
            Memory("told", before + bytes([int(draws[0] * 255)])) if task.return_memory else None
        )
        return Episode(f"{task.id}.e", task.id, task.seed, (opening, *answers), version, task.step,
        worker=str(os.getpid()),
                       initial_memory=task.initial_memory, final_memory=final,
                       iteration=task.iteration, batch_index=task.batch_index)  # fmt: skip


class Scorer:
    def after(self, state: Mapping[str, Any], episodes: Sequence[Episode]) -> dict[str, Any]:
        return {"seen": state.get("seen", 0) + len(episodes)}

    def observe(self, state: Mapping[str, Any], episodes: Sequence[Episode]) -> None:
        pass

    async def score(self, episodes: Sequence[Episode], state: Mapping[str, Any]) -> list[Episode]:
        await asyncio.sleep(0.01)
        if any(turn.query == "crash" for episode in episodes for turn in episode.turns):
            raise DataFailure("this row cannot be scored at all")
        return [
            replace(
                episode,
                turns=(episode.turns[0], *(self.turn(turn, state) for turn in episode.answered)),
            )
            for episode in episodes
        ]

    @staticmethod
    def turn(turn: Turn, state: Mapping[str, Any]) -> Turn:
        if turn.query == "unscorable" or (turn.query == "half" and turn.done):
            return replace(turn, failure="no reference")
        return replace(
            turn, rewards={"length": 1.0, "seen": state.get("seen", 0)}, reward=sum(turn.log_probs)
        )

    def patience(self, episodes: Sequence[Episode]) -> float:
        return 60.0

    def waiting_for(self) -> list[str]:
        return []

    def stop_waiting(self) -> None:
        pass

    async def metrics(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        pass


def rows(*special: str, count: int = 12, plain: str = "q") -> list[Row]:
    """Each special row once, the rest plain."""
    return [
        Row(query, "a", (Interaction("q", "a"),))
        for query in (*special, *[plain] * (count - len(special)))
    ]


def settings(workers: int = 2, **rollout: Any) -> Run:
    sizes = {"workers": workers, "slots": 4, "deadline": 30, "retries": 2} | rollout
    return Run.model_validate(
        {"name": "test", "seed": 3, "data": {"kind": "synth"}, "stages": STAGES, "rollout": sizes}
    )


def weights(version: int, scale: float = 1.0) -> list[ray.ObjectRef]:
    return [ray.put(pack({"scale": torch.tensor(scale)}, version))]


def conduct(
    folder: Path,
    body: Callable[[Conductor], Awaitable[Any]],
    data: list[Row] | None = None,
    run: Run | None = None,
) -> Any:
    """body(conductor) with version 0 published, in this process: only its actors are elsewhere."""
    run = run or settings()
    folder.mkdir(exist_ok=True)

    def make_workers() -> list[ActorHandle]:
        return [Worker.remote(folder / "events") for _ in range(run.rollout.workers)]

    async def main() -> Any:
        conductor = Conductor(
            run, data or rows(), make_workers, Scorer, RunDirectory(str(folder), "run")
        )
        try:
            await conductor.publish(0, weights(0))
            return await body(conductor)
        finally:
            await conductor.close()

    return asyncio.run(asyncio.wait_for(main(), 90))


def content(batch: Batch) -> list[Episode]:
    """All but who made it."""
    return [replace(episode, worker="") for ref in batch.shard for episode in ray.get(ref)]


async def iterate(
    conductor: Conductor, plan: Plan = PLAN, first: int = 0, last: int = 3
) -> list[list[Episode]]:
    """Iterations first … last - 1 as a learner of one rank would go through them."""
    batches = []
    for iteration in range(first, last):
        await conductor.publish(iteration, weights(iteration, scale=1.0 + iteration))
        batch = await conductor.next_batch(iteration, iteration, 0, 1, plan)
        batches.append(content(batch))
        await conductor.mark_trained(iteration, iteration + 1)
        counts = conductor._disk.journal.counts
        assert counts.dealt == counts.trained + counts.dropped + counts.failed
        assert counts.in_flight == 0
    return batches
