"""Batches and versions of the weights that they are played with, on a real Ray."""

import asyncio
import json
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
import ray
import torch

from common.episode import Episode
from common.failures import InfraFailure, InputError
from common.storage.run_directory import RunDirectory
from common.weights import WeightsCorrupt, pack
from rollout.conductor import Conductor, launch
from rollout.iterations import RolloutState
from rollout.journal.journal import outcomes
from tests.conducting import (
    PLAN,
    Scorer,
    Worker,
    conduct,
    content,
    iterate,
    rows,
    settings,
    weights,
)

pytestmark = pytest.mark.usefixtures("ray_local")


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
