from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from common.config.rollout import Rollout, Sampling
from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.episode import Interaction, Row, Task
from common.failures import InfraFailure
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.telemetry.metrics import Metrics
from common.weights import PackedWeights, WeightsCorrupt, pack
from rollout.policies.reactive.engine import ReactiveEngine
from rollout.policies.table import PolicyShape
from rollout.worker import RolloutWorker

TOKENIZER: ConversationTokenizer = train_tokenizer(["my dog is called Rex"], 280)
CONFIG: dict[str, Any] = {
    "vocab_size": TOKENIZER.vocab_size, "width": 32, "heads": 4, "query_heads": 2, "kv_heads": 2,
    "decoder_ff": 48, "encoder_ff": 48,
    "slots": 8, "max_tokens": 40, "initializer_range": 0.25,
}  # fmt: skip
SHAPE = PolicyShape("reactive", CONFIG, TOKENIZER.to_json())
ROLLOUT = Rollout(slots=4, sampling=Sampling(max_new_tokens=6))


def make_model(seed: int) -> ReactiveTransformer:
    torch.manual_seed(seed)
    return ReactiveTransformer(RxTConfig(**CONFIG)).eval()


def make_worker(index: int = 0) -> RolloutWorker:
    return RolloutWorker(SHAPE, ROLLOUT, "run", index)


def make_tasks(count: int) -> list[Task]:
    row = Row("my dog is Rex", "ok", (Interaction("the dog?", "Rex", role="recall"),))
    return [Task(f"task-{i}", row, seed=i, step="first") for i in range(count)]


@pytest.fixture(scope="module")
def weights() -> PackedWeights:
    return pack(make_model(3).state_dict(), version=5)


def test_a_worker_plays_what_the_engine_plays(weights: PackedWeights) -> None:
    tasks = make_tasks(6)
    expected = ReactiveEngine(make_model(3), TOKENIZER, 2, ROLLOUT.sampling).run(
        tasks, version=5, worker="run/rollout-1"
    )
    assert make_worker(1).sample(tasks, 5, weights) == expected
    assert {(episode.step, episode.weights_version, episode.id) for episode in expected[:1]} == {
        ("first", 5, "task-0@5")
    }


def test_workers_differ_in_nothing_but_their_name(weights: PackedWeights) -> None:
    one, two = (make_worker(i).sample(make_tasks(5), 5, weights) for i in range(2))
    assert [dataclasses.replace(episode, worker="") for episode in one] == [
        dataclasses.replace(episode, worker="") for episode in two
    ]


def test_a_worker_without_the_version_is_an_infra_failure(weights: PackedWeights) -> None:
    worker = make_worker()
    with pytest.raises(InfraFailure, match="version -1, not 5"):
        worker.sample(make_tasks(1), 5)
    assert worker.set_weights(weights) == 5
    assert len(worker.sample(make_tasks(1), 5)) == 1
    with pytest.raises(InfraFailure, match="version 5, not 6"):
        worker.sample(make_tasks(1), 6, weights)


def test_other_weights_of_the_same_version_are_taken(weights: PackedWeights) -> None:
    worker = make_worker()
    first = worker.sample(make_tasks(2), 5, weights)
    assert worker.sample(make_tasks(2), 5, pack(make_model(4).state_dict(), version=5)) != first


def test_corrupt_weights_are_refused_and_the_old_ones_kept(weights: PackedWeights) -> None:
    worker = make_worker()
    before = worker.sample(make_tasks(2), 5, weights)
    newer = pack(make_model(4).state_dict(), version=6)
    name = "decoder.head.bias"
    corrupt = dataclasses.replace(
        newer, tensors={**newer.tensors, name: np.full_like(newer.tensors[name], 0.5)}
    )
    with pytest.raises(WeightsCorrupt):
        worker.sample(make_tasks(2), 6, corrupt)
    assert worker.sample(make_tasks(2), 5) == before


def test_a_task_that_does_not_fit_fails_alone(weights: PackedWeights) -> None:
    tasks = make_tasks(3)
    tasks[1] = dataclasses.replace(tasks[1], row=Row("dog " * 60, "ok", tasks[1].row.interactions))
    episodes = make_worker().sample(tasks, 5, weights)
    assert [episode.status for episode in episodes] == ["generated", "failed", "generated"]
    assert "turn 0: an interaction of" in (episodes[1].turns[0].failure or "")
    assert episodes[1].answered == ()


def test_metrics_count_since_the_start_and_phases_are_named(weights: PackedWeights) -> None:
    worker = make_worker()
    assert worker.phase() == "idle"
    worker.sample(make_tasks(4), 5, weights)
    episodes = worker.sample(make_tasks(4), 5)
    metrics = worker.get_metrics()
    assert metrics["episodes"] == 8
    assert metrics["tokens"] == 2 * sum(
        len(turn.answer_ids) for episode in episodes for turn in episode.answered
    )
    assert 0 < metrics["slot_occupancy"] <= 1
    assert metrics["tokens_per_second"] > 0
    assert {
        f"seconds/{phase}"
        for phase in ("decode", "prefill", "write", "sample", "sync", "wait", "load_weights")
    } <= metrics.keys()


def test_metrics_for_the_recorder_count_what_is_new(weights: PackedWeights) -> None:
    worker, rows = make_worker(), []
    for tasks in (4, 2, 0):
        if tasks:
            worker.sample(make_tasks(tasks), 5, weights)
        metrics = Metrics()
        metrics.merge(worker.metrics())
        rows.append(metrics.flush(len(rows), "mrl"))
    assert all(row["rollout/tokens_per_second"] > 0 for row in rows[:2])
    assert all(0 < row["rollout/slot_occupancy"] <= 1 for row in rows[:2])
    assert "rollout/slot_occupancy" not in rows[2]
    idle = [row.get("time/idle_fraction{role=rollout}") for row in rows]
    assert idle[0] is not None
    assert 0 < idle[0] < 1
    assert idle[2] is None, "nothing is known of a worker that had no call"
    waited = "time/phase_seconds{phase=wait,role=rollout}"
    first = {key: rows[0][key] for key in rows[0] if key.startswith("time/phase_seconds")}
    assert idle[0] == pytest.approx(first[waited] / sum(first.values()))
    decode = "time/phase_seconds{phase=decode,role=rollout}"
    assert rows[0][decode] > 0
    assert rows[2][decode] == 0
    assert sum(row[decode] for row in rows) == pytest.approx(worker.get_metrics()["seconds/decode"])


def test_state_and_health_have_the_names_of_rllib(weights: PackedWeights) -> None:
    worker = make_worker()
    worker.set_state({"weights": weights})
    assert worker.get_state() == {"name": "run/rollout-0", "version": 5, "digest": weights.digest}
    worker.assert_healthy()
    assert worker.ping() == "pong"
    broken = make_model(3).state_dict()
    broken["decoder.head.bias"][0] = torch.nan
    worker.set_weights(pack(broken, version=7))
    with pytest.raises(InfraFailure, match="not finite"):
        worker.assert_healthy()
