"""On a real local Ray. Workers are small but real: they load and verify weights, and make episodes
that depend on task and weights."""

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import ray
import torch
from ray.actor import ActorHandle

from common.actors.actor import PooledActor
from common.config.run import Run
from common.episode import Episode, Interaction, Memory, Row, Task, Turn
from common.failures import DataFailure, DeadlineExceeded, InfraFailure, InputError
from common.seeding import uniforms
from common.storage.run_directory import RunDirectory
from common.telemetry.metrics import Metrics
from common.weights import PackedWeights, WeightsCorrupt, pack, unpack
from rollout.conductor import Batch, Conductor, launch
from rollout.iterations import RolloutState
from rollout.journal.journal import outcomes
from rollout.tasks import Plan, Selection

pytestmark = pytest.mark.usefixtures("ray_local")

# Actors that only see this module through what is sent to them cannot import it.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

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


def test_workers_and_ranks_do_not_show_in_the_batches(tmp_path: Path) -> None:
    plan = replace(PLAN, reset_probability=0.4)
    one = conduct(
        tmp_path / "one", lambda conductor: iterate(conductor, plan), run=settings(1, slots=32)
    )

    async def three_ranks(conductor: Conductor) -> list[list[Episode]]:
        batches = []
        for iteration in range(3):
            await conductor.publish(iteration, weights(iteration, scale=1.0 + iteration))
            parts = await asyncio.gather(
                *(conductor.next_batch(iteration, iteration, rank, 3, plan) for rank in range(3))
            )
            shards = [content(part) for part in parts]
            assert [len(shard) for shard in shards] == [4, 4, 4]
            batches.append([shards[place % 3][place // 3] for place in range(12)])
            await conductor.mark_trained(iteration, iteration + 1)
        return batches

    three = conduct(tmp_path / "three", three_ranks, run=settings(3, slots=2))
    assert one == three
    assert all(any(episode.initial_memory for episode in batch) for batch in one[1:])
    # The learner compares those of the first two with its own.
    for batch in one:
        kept = [i for i, episode in enumerate(batch) if episode.final_memory is not None]
        assert kept == [0, 1]


def test_worker_killed_in_the_middle_of_a_batch_changes_nothing_and_returns_with_verified_weights(
    tmp_path: Path,
) -> None:
    data = rows(plain="slow")
    calm = conduct(tmp_path / "calm", lambda conductor: iterate(conductor, last=1), data)

    async def disturbed(conductor: Conductor) -> list[Episode]:
        await conductor.publish(0, weights(0, scale=1.0))
        asking = asyncio.create_task(conductor.next_batch(0, 0, 0, 1, PLAN))
        events = tmp_path / "disturbed" / "events"
        while "samples" not in events.read_text():
            await asyncio.sleep(0.02)
        victim = next(
            line.split()[0] for line in events.read_text().splitlines() if "samples" in line
        )
        os.kill(int(victim), signal.SIGKILL)
        batch = await asking
        assert conductor._pool.stats()["infra_failures"] >= 1
        async with asyncio.timeout(30):
            while conductor._pool.stats()["healthy"] < 2:
                await asyncio.sleep(0.05)
        await conductor.mark_trained(0, 1)
        again = await conductor.next_batch(1, 0, 0, 1, PLAN)
        assert again.episodes == 12
        return content(batch)

    assert conduct(tmp_path / "disturbed", disturbed, data) == calm[0]
    lines = [
        line.split(" ", 1) for line in (tmp_path / "disturbed" / "events").read_text().splitlines()
    ]
    first_event = dict(reversed(lines))
    assert len(first_event) == 3
    assert set(first_event.values()) == {"loaded 0"}
    assert "healed itself" not in {event for _, event in lines}


def test_poisoned_tasks_are_counted_as_failed_and_take_nobody_with_them(tmp_path: Path) -> None:
    async def body(conductor: Conductor) -> tuple[Batch, list[Episode], dict[str, Any]]:
        batch = await conductor.next_batch(0, 0, 0, 1, PLAN)
        await conductor.mark_trained(0, 1)
        metrics = Metrics()
        metrics.merge(await conductor.metrics())
        return batch, content(batch), metrics.flush(1, "mrl")

    batch, episodes, metrics = conduct(
        tmp_path, body, rows("poison", "unscorable", "crash", "half")
    )
    assert len(episodes) == batch.episodes == 9
    assert batch.failed == 3
    half = next(episode for episode in episodes if episode.turns[1].query == "half")
    assert batch.failed_turns == sum(turn.reward is None for turn in half.answered) == 1
    assert (
        metrics["conductor/dealt"],
        metrics["conductor/trained"],
        metrics["conductor/in_flight"],
    ) == (12, 9, 0)
    assert (
        metrics["conductor/failed{reason=sampling}"],
        metrics["conductor/failed{reason=scoring}"],
    ) == (1, 2)
    assert metrics["fleet/workers{pool=rollout,state=healthy}"] == 2
    assert metrics["time/phase_seconds{phase=sampling,role=conductor}"] > 0
    reasons = " | ".join(
        row["reason"] for row in outcomes(tmp_path / "run").to_pylist() if row["status"] == "failed"
    )
    assert "DataFailure: this row cannot be played" in reasons
    assert "scoring: this row cannot be scored at all" in reasons
    assert "scoring: no turn has a score: no reference" in reasons


def test_batch_that_hangs_ends_at_its_deadline_with_a_reason_and_is_made_anew_when_asked_again(
    tmp_path: Path,
) -> None:
    async def body(conductor: Conductor) -> None:
        with pytest.raises(DeadlineExceeded, match="sampling 0-000000-"):
            await conductor.next_batch(0, 0, 0, 1, PLAN)
        assert (
            conductor._disk.journal.counts.in_flight,
            conductor._disk.journal.counts.dropped,
        ) == (0, 12)
        with pytest.raises(DeadlineExceeded):
            await conductor.next_batch(0, 0, 0, 1, PLAN)
        assert conductor._disk.journal.counts.dealt == 24

    conduct(tmp_path, body, rows("hang"), settings(deadline=2, retries=0))


def test_status_names_what_is_waited_for(tmp_path: Path) -> None:
    async def body(conductor: Conductor) -> dict[str, Any]:
        asking = asyncio.create_task(conductor.next_batch(0, 0, 0, 1, PLAN))
        await asyncio.sleep(0.2)
        status = await conductor.status()
        await asking
        assert (await conductor.status())["phase"] == "idle"
        return status

    status = conduct(tmp_path, body, rows(plain="slow"))
    assert (status["phase"], status["iteration"], status["groups"]["all"]) == ("sampling", 0, 2)
    assert "0-000000-" in status["reason"]


def test_asking_again_gives_the_same_batch_and_new_weights_a_new_one_of_the_same_tasks(
    tmp_path: Path,
) -> None:
    async def body(conductor: Conductor) -> None:
        first, second = [await conductor.next_batch(0, 0, 0, 1, PLAN) for _ in range(2)]
        assert first.shard == second.shard
        await conductor.publish(1, weights(1, scale=2.0))
        third = content(await conductor.next_batch(0, 1, 0, 1, PLAN))
        assert [episode.seed for episode in third] == [episode.seed for episode in content(first)]
        assert third[0].turns[1].log_probs[0] == 2 * content(first)[0].turns[1].log_probs[0]
        counts = conductor._disk.journal.counts
        assert (counts.dealt, counts.dropped, counts.scored) == (24, 12, 12)
        with pytest.raises(InputError, match="published is 1"):
            await conductor.next_batch(0, 0, 0, 1, PLAN)
        await conductor.mark_trained(0, 2)
        with pytest.raises(InputError, match="was trained"):
            await conductor.next_batch(0, 1, 0, 1, PLAN)
        with pytest.raises(InputError):
            await conductor.mark_trained(0, 2)

    conduct(tmp_path, body)


def test_resumed_run_goes_on_as_the_uninterrupted_one_and_the_books_say_what_was_lost(
    tmp_path: Path,
) -> None:
    plan = replace(PLAN, reset_probability=0.4)
    straight = conduct(tmp_path / "straight", lambda conductor: iterate(conductor, plan, last=4))

    async def until_crash(conductor: Conductor) -> dict[str, Any]:
        await iterate(conductor, plan, last=1)
        await conductor.publish(1, weights(1, scale=2.0))
        await conductor.next_batch(1, 1, 0, 1, plan)
        await conductor.mark_trained(1, 2)
        state = await conductor.state()
        await iterate(conductor, plan, 2, 3)
        return json.loads(json.dumps(state.to_json()))

    state = conduct(tmp_path / "resumed", until_crash)

    async def after_crash(conductor: Conductor) -> list[list[Episode]]:
        await conductor.load_state(RolloutState.from_json(state))
        return await iterate(conductor, plan, 2, 4)

    assert conduct(tmp_path / "resumed", after_crash) == straight[2:]
    by_status = (
        outcomes(tmp_path / "resumed" / "run")
        .group_by(["status", "reason"])
        .aggregate([([], "count_all")])
        .to_pylist()
    )
    assert {(row["status"], row["reason"]): row["count_all"] for row in by_status} == {
        ("trained", None): 4 * 12,
        ("dropped", "rolled back to step 2"): 12,
    }
    assert (
        ds.dataset(tmp_path / "resumed" / "run" / "episodes", format="parquet").count_rows()
        == 5 * 12
    )


def test_corrupted_weights_are_refused_before_any_worker_is_touched(tmp_path: Path) -> None:
    async def body(conductor: Conductor) -> None:
        packed = pack({"scale": torch.tensor(5.0)}, 1)
        packed.tensors["scale"][...] = 6.0
        with pytest.raises(WeightsCorrupt, match="bucket 0"):
            await conductor.publish(1, [ray.put(packed)])
        batch = await conductor.next_batch(0, 0, 0, 1, PLAN)
        assert batch.episodes == 12

    conduct(tmp_path, body)
    assert "refused" not in (tmp_path / "events").read_text()


def test_worker_whose_copy_of_the_weights_is_corrupt_stays_out_of_service_until_it_has_good_ones(
    tmp_path: Path,
) -> None:
    async def body(conductor: Conductor) -> None:
        packed = pack({"scale": torch.tensor(5.0)}, 1)
        packed.tensors["scale"][...] = 6.0
        good, conductor._weights = conductor._weights, ray.put(packed)
        with pytest.raises(InfraFailure, match="WeightsCorrupt"):
            await conductor._bring_up_to_date(0)
        conductor._pool.outdated(0, "test")
        await asyncio.sleep(1.0)
        assert conductor._pool.fleet.having(conductor._pool.fleet.members[1].health) == [1]
        conductor._weights = good
        async with asyncio.timeout(20):
            while conductor._pool.stats()["healthy"] < 2:
                await asyncio.sleep(0.05)

    conduct(tmp_path, body)


def test_ranks_in_other_processes_share_the_batches_of_a_conductor_actor(tmp_path: Path) -> None:
    name = f"conductor-{uuid.uuid4().hex}"
    workers = [Worker.remote(tmp_path / "events") for _ in range(2)]
    conductor = launch(
        name,
        settings(),
        ray.put(rows()),
        lambda: workers,
        Scorer,
        RunDirectory(str(tmp_path), "run"),
    )

    @ray.remote(num_cpus=0.1)
    def rank_of_two(rank: int, reference: list[ray.ObjectRef]) -> list[Episode]:
        conductor = ray.get_actor(name)
        if rank == 0:
            published = ray.get(conductor.publish.remote(0, reference))
            assert len(published.acknowledged) == 2
        while ray.get(conductor.status.remote())["version"] is None:
            time.sleep(0.05)
        batch = ray.get(conductor.next_batch.remote(0, 0, rank, 2, PLAN))
        return [episode for ref in batch.shard for episode in ray.get(ref)]

    first, second = ray.get([rank_of_two.remote(rank, weights(0)) for rank in range(2)], timeout=60)
    assert sorted(episode.task for episode in first + second) == [
        f"0-000000-{place:05d}" for place in range(12)
    ]
    assert ray.get(conductor.mark_trained.remote(0, 1)) == 12
    assert ray.get(conductor.state.remote()) == RolloutState(1, {"seen": 12})
    ray.get(conductor.close.remote(), timeout=30)
    ray.kill(conductor)
