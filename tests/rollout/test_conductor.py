"""On a real local Ray. Workers are small but real: they load and verify weights, and make episodes
that depend on task and weights."""

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from common.episode import Episode
from common.failures import DeadlineExceeded
from common.telemetry.metrics import Metrics
from rollout.conductor import Batch, Conductor
from rollout.journal.journal import outcomes
from tests.conducting import PLAN, conduct, content, iterate, rows, settings, weights

pytestmark = pytest.mark.usefixtures("ray_local")

# Actors that only see this module through what is sent to them cannot import it.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


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
