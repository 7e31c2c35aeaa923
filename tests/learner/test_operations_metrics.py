"""Metrics of a run's own state: moments, values that are no numbers, staleness, time by turn and by
component."""

from __future__ import annotations

import math
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.config.rewards import Rewards
from common.config.rollout import Sampling
from common.data.tokenizer import train_tokenizer
from common.storage.run_directory import RunDirectory
from common.telemetry.metrics import Metrics
from common.telemetry.timing import PhaseTimer
from learner import recorder as recorder_module
from learner.metrics import record_staleness
from learner.recorder import Recorder
from reward_service.compose import judge
from rollout.policies.reactive.engine import ReactiveEngine
from tests.local_source import lively_model, played, tiny_corpus, tiny_run, tiny_tasks


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    run = tiny_run(tmp_path, "sft")
    directory = RunDirectory(run.runs, run.name)
    made = Recorder(run, directory, None)
    made.begin(0, 0, 0, None)
    yield made
    made.close()


def scraped(recorder: Recorder, name: str) -> float | None:
    with urllib.request.urlopen(recorder.url(), timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
    return float(found[0].rpartition(" ")[2]) if found else None


def step(recorder: Recorder, number: int, **figures: float) -> None:
    metrics = Metrics()
    metrics.record("train/loss_lm", 1.0)
    for name, value in figures.items():
        metrics.record(name.replace("__", "/"), value)
    recorder.record(0, 1, number, number, metrics.drain())


def test_the_last_step_and_checkpoint_are_moments_that_move(recorder: Recorder) -> None:
    recorder.report()  # shows them before the first row
    began = scraped(recorder, "engram_time_last_step")
    assert began is not None
    assert time.time() - 60 < began <= time.time()
    assert scraped(recorder, "engram_checkpoint_last_saved") == began
    time.sleep(0.05)
    step(recorder, 1)
    stepped = scraped(recorder, "engram_time_last_step")
    assert stepped is not None
    assert stepped > began
    assert scraped(recorder, "engram_checkpoint_last_saved") == began, "none was saved"
    time.sleep(0.05)
    recorder.saved(0.5)
    saved = scraped(recorder, "engram_checkpoint_last_saved")
    assert saved is not None
    assert saved > stepped
    step(recorder, 2)
    assert scraped(recorder, "engram_checkpoint_seconds_sum") == 0.5


def test_the_host_is_looked_at_between_steps(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.report()
    looked: list[int] = []
    monkeypatch.setattr(recorder_module, "record_memory", lambda *_: looked.append(1))
    recorder.report()
    assert looked == [], "not at every question of the driver"
    monkeypatch.setattr(recorder_module, "SAMPLE_SECONDS", 0.0)
    recorder.report()
    assert looked == [1]


def test_moments_outlive_a_stage_whose_gauges_go(recorder: Recorder) -> None:
    step(recorder, 1, memory__drift=0.5)
    assert scraped(recorder, "engram_memory_drift") == 0.5
    recorder.metrics.flush(2, "mrl")
    recorder._show()
    assert scraped(recorder, "engram_memory_drift") is None
    assert scraped(recorder, "engram_checkpoint_last_saved") is not None


def test_values_that_are_no_numbers_are_counted_and_told(recorder: Recorder) -> None:
    step(recorder, 1)
    assert scraped(recorder, "engram_run_not_finite_total") == 0
    step(recorder, 2, train__loss_router=math.nan, train__gradient_norm=math.inf)
    assert scraped(recorder, "engram_run_not_finite_total") == 2
    notes = recorder.report().notes
    assert any("train/loss_router" in note and "train/gradient_norm" in note for note in notes)
    step(recorder, 3)
    assert scraped(recorder, "engram_run_not_finite_total") == 2


def test_staleness_is_versions_between_playing_and_learning() -> None:
    tokenizer = train_tokenizer(tiny_corpus().texts, 400)
    (episode,) = played(lively_model(tokenizer), tokenizer, tiny_tasks(1))
    metrics = Metrics()
    episodes = [replace(episode, weights_version=version) for version in (7, 7, 4)]
    record_staleness(episodes, 7, metrics)
    record_staleness([], 7, metrics)
    row = metrics.flush(1, "mrl")
    assert (row["rollout/staleness"], row["rollout/staleness_max"]) == (1.0, 3.0)


def test_the_engine_counts_the_time_of_answers() -> None:
    tokenizer = train_tokenizer(tiny_corpus().texts, 400)
    engine = ReactiveEngine(lively_model(tokenizer), tokenizer, 2, Sampling(max_new_tokens=8))
    began = time.perf_counter()
    engine.run(tiny_tasks(3))
    elapsed = time.perf_counter() - began
    tally = engine.tally
    # Two slots at a time, so at most twice the time that passed.
    assert 0 < tally.answer_seconds <= 2 * elapsed
    assert tally.answer_seconds / tally.interactions < elapsed


def test_each_component_is_timed_under_its_name() -> None:
    tokenizer = train_tokenizer(tiny_corpus().texts, 400)
    model = lively_model(tokenizer)
    episodes = played(model, tokenizer, tiny_tasks(2))
    timer, embedding = PhaseTimer(), model.embedding.weight.detach().numpy()
    judge(episodes, Rewards(), embedding, range(8), timer=timer)
    named = {name for each in episodes for turn in each.answered for name in turn.rewards}
    assert named <= timer.seconds.keys()
    assert all(seconds > 0 for seconds in timer.seconds.values())
