"""What reaches the recorder from elsewhere than a rank's step, and the figures of an evaluation."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import numpy as np
import pytest

from common.episode import Episode, Turn
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from common.telemetry.metrics import Metrics
from learner.evaluation.figures import Evaluation, Figure
from learner.evaluation.match import MATCH, reward_figure
from learner.evaluation.retention import FIGURES
from learner.metrics import Pace, record_evaluation, record_training
from learner.recorder import Recorder
from tests.local_source import tiny_run


def observed(name: str, value: float, **labels: str) -> dict[str, object]:
    metrics = Metrics()
    metrics.record(name, value, **labels)
    return metrics.drain()


def test_what_the_driver_observes_is_in_the_next_row_though_a_stage_begins_meanwhile(
    tmp_path: Path,
) -> None:
    run = tiny_run(tmp_path, "sft")
    directory = RunDirectory(run.runs, run.name)
    recorder = Recorder(run, directory, None)
    recorder.observe(observed("run/resumes", 1))
    recorder.begin(0, 0, 0, None)
    recorder.record(0, 1, 1, 1, observed("train/steps", 1))
    state = recorder.metrics_state()
    recorder.record(0, 1, 2, 2, observed("train/steps", 1))
    recorder.observe(observed("checkpoint/seconds", 3.0))
    recorder.begin(0, 1, 1, state)  # the learner group died, and goes on from step 1
    recorder.record(0, 1, 2, 2, observed("train/steps", 1))
    recorder.close()
    first, second = read_rows(directory)
    assert (first["step"], first["run/resumes"], first["train/steps"]) == (1, 1, 1)
    assert "fleet/restarts{pool=learner}" not in first
    assert (
        second["step"],
        second["fleet/restarts{pool=learner}"],
        second["checkpoint/seconds"],
        second["train/steps"],
    ) == (2, 1, 3.0, 2)


def test_observations_before_a_checkpoint_are_in_its_totals(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "sft")
    recorder = Recorder(run, RunDirectory(run.runs, run.name), None)
    recorder.observe(observed("checkpoint/saved", 1))
    resumed = Metrics()
    resumed.load_state_dict(recorder.metrics_state())
    recorder.close()
    assert resumed.flush(1, "sft")["checkpoint/saved"] == 1


def test_the_evaluation_after_the_last_stage_is_in_the_row_of_its_last_step_and_in_prometheus(
    tmp_path: Path,
) -> None:
    run = tiny_run(tmp_path, "mrl")
    directory = RunDirectory(run.runs, run.name)
    recorder = Recorder(run, directory, None)
    recorder.begin(0, 0, 0, None)
    for step in (1, 2):
        recorder.record(0, 1, step, step, observed("train/steps", 1))
    state = recorder.metrics_state()
    recorder.observe(observed("run/watchdog", 1, waiting_for="collect"))
    once, whole = read_rows(directory)
    recorder.observe_last(observed("eval/exact", 0.25, distance="all"), "mrl", 2, state)
    recorder.close()
    assert read_rows(directory) == [once, whole | {"eval/exact{distance=all}": 0.25}]

    # A driver that finds the evaluation owed begins no stage; evaluated again, the row has it once.
    recorder = Recorder(run, directory, 2)
    recorder.observe_last(observed("eval/exact", 0.5, distance="all"), "mrl", 2, state)
    scrape = urllib.request.urlopen(recorder.url()).read().decode()
    recorder.close()
    assert read_rows(directory) == [once, whole | {"eval/exact{distance=all}": 0.5}]
    shown = dict(
        line.rsplit(" ", 1)
        for line in scrape.splitlines()
        if line.startswith(("engram_eval_exact{", "engram_train_steps_total{"))
    )
    assert sorted(shown.values()) == ["0.5", "2.0"]
    directory.remove("metrics.jsonl")
    recorder = Recorder(run, directory, 2)
    recorder.observe_last(observed("eval/exact", 0.5, distance="all"), "mrl", 2, state)
    recorder.close()
    assert [(row["step"], row["eval/exact{distance=all}"]) for row in read_rows(directory)] == [
        (2, 0.5)
    ]


def share(hits: int, counts: int) -> Figure:
    return Figure(*({key: np.array([n]) for key in ("1", "all")} for n in (hits, counts)))


def test_evaluation_gives_recall_by_memory_and_distance_and_rewards_of_scored_turns() -> None:
    def turn(reward: float | None) -> Turn:
        return Turn(
            [1],
            [2],
            [0.0],
            [2],
            reward=reward,
            rewards={} if reward is None else {"recall": 2 * reward},
        )

    opening = Turn([1], [], [], [2], role="remember")
    episode = Episode("e", "t", 0, (opening, turn(0.25), turn(None), turn(0.75)), 0, "evaluation")
    metrics = Metrics()
    figures = {name: share(1, 2) for name in FIGURES + MATCH}
    kept = figures | {"by_order": share(3, 4), "scores": reward_figure([episode])}
    erased = dict.fromkeys([*figures, "scores"], share(1, 8))
    record_evaluation(Evaluation(kept, erased, [episode]), metrics)
    record_training(figures, metrics)
    row = metrics.flush(1, "mrl")
    assert row["eval/recall{memory=kept,distance=1}"] == 0.5
    assert row["eval/recall{memory=erased,distance=all}"] == 0.125
    assert row["eval/exact{distance=1}"] == row["eval/outdated{distance=all}"] == 0.5
    assert row["eval/by_order{order=1}"] == 0.75
    assert (row["eval/scores"], row["eval/reward{component=recall}"]) == (0.5, 1.0)
    assert row["eval/reward_erased{component=all}"] == 0.125
    assert (row["eval/f1{memory=kept}"], row["eval/exact_match{memory=erased}"]) == (0.5, 0.125)
    assert row["eval/training_recall{distance=1}"] == row["eval/training_f1"] == 0.5


def test_pace_is_of_a_whole_row_and_adds_up_over_ranks() -> None:
    row = Metrics()
    for seconds in (1.0, 2.0):
        metrics, pace = Metrics(), Pace()
        pace.count(10, seconds, metrics)
        pace.count(20, seconds, metrics)
        pace.record(metrics)
        row.merge(metrics.drain())
    flushed = row.flush(1, "sft")
    assert flushed["train/tokens_per_second"] == pytest.approx(30 / 2 + 30 / 4)
    assert flushed["train/tokens"] == 60
