"""summary.json keeps stages apart, adds up what was interrupted, and says what was evaluated."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from common.storage.checkpoint import Checkpoint
from common.storage.lease import hold
from common.telemetry.progress import QuietProgress
from deploy.cli import tell_of_run
from learner.driver import is_left
from learner.evaluation.evaluate import figures_of
from learner.evaluation.figures import Evaluation, Figure
from learner.summary import Summary
from learner.training_state import TrainingState
from tests.local_source import STAGES, run_here, tiny_run


def test_two_stages_of_one_kind_have_figures_of_their_own_and_a_resumed_one_adds_up(
    tmp_path: Path,
) -> None:
    run = tiny_run(tmp_path, "sft", STAGES["sft"] | {"steps": 3})
    directory, _ = run_here(run)
    summary = Summary(run, directory, since=time.monotonic() - 8)
    with summary.stage(0):
        pass
    with pytest.raises(KeyboardInterrupt), summary.stage(1):  # noqa: PT012 - what is spent before an interrupt counts
        time.sleep(0.3)
        raise KeyboardInterrupt
    summary.write("stopped")
    resumed = Summary(run, directory)
    with resumed.stage(1):
        time.sleep(0.2)
        during = json.loads(directory.read_text("summary.json"))
    assert during["status"] == "running"
    written = resumed.write("done")
    assert written == json.loads(directory.read_text("summary.json"))
    assert 8.5 <= written["wall_seconds"] < 12
    first, second = written["stages"]
    assert [(each["index"], each["name"], each["steps"]) for each in (first, second)] == [
        (0, "sft", 6),
        (1, "sft", 3),
    ]
    assert first["wall_seconds"] < 0.3
    assert 0.5 <= second["wall_seconds"] < 3
    assert first["metrics"]["train/steps"]["last"] == 6
    assert second["metrics"]["train/steps"] == {"first": 7, "last": 9}
    assert first["metrics"]["train/loss_lm"]["first"] != second["metrics"]["train/loss_lm"]["first"]


def test_an_evaluation_counts_for_its_stage_once_it_is_written(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "sft", "mrl", "mrl")
    directory, _ = run_here(tiny_run(tmp_path, "sft"))
    summary = Summary(run, directory)
    half = Figure({"all": np.array([1, 0])}, {"all": np.array([1, 1])})
    summary.keep_figures("after_mrl", Evaluation(dict.fromkeys(figures_of([]), half), {}, []))
    assert not Summary(run, directory).evaluated("after_mrl", 1)
    summary.keep_evaluation("after_mrl", 1)
    again = Summary(run, directory)
    assert again.evaluated("after_mrl", 1)
    assert not again.evaluated("before_mrl", 1)
    assert not again.evaluated("after_mrl", 2)
    assert (
        again.value["retention"]["after_mrl"]
        == again.value["retention"]["exact"]["after_mrl"]
        == {"all": 0.5}
    )
    assert again.value["retention"]["intervals"]["exact"]["after_mrl"] == {"all": [0.0, 1.0]}
    assert again.value["retention"]["counts"]["after_mrl"] == {"all": 2}
    match = again.value["match"]
    assert match["f1"]["after_mrl"] == match["exact_match"]["after_mrl"] == {"all": 0.5}
    assert match["intervals"]["f1"]["after_mrl"] == {"all": [0.0, 1.0]}
    assert again.value["scores"]["after_mrl"] == {"all": 0.5}
    assert again.value["scores"]["counts"]["after_mrl"] == {"all": 2}
    again.refresh(1)
    assert again.evaluated("after_mrl", 1)


def test_an_evaluation_is_owed_where_the_run_stands_right_after_a_stage_that_has_none(
    tmp_path: Path,
) -> None:
    run = tiny_run(tmp_path, "sft", "mrl", "sft", "mrl")
    directory, _ = run_here(tiny_run(tmp_path, "sft"))
    summary = Summary(run, directory)

    def owed(stage: int) -> list[int]:
        state = TrainingState(stage, run.stages[stage].stage, 6, None)
        checkpoint = Checkpoint("", {"state": state.to_json()})
        return [index for index in range(stage + 1) if is_left(checkpoint, index, run, summary)]

    assert [owed(stage) for stage in range(4)] == [[], [1], [], [3]]
    summary.keep_evaluation("after_mrl", 1)
    assert [owed(stage) for stage in range(4)] == [[], [], [], [3]]
    summary.keep_evaluation("before_mrl", 3)
    assert owed(3) == [3]
    summary.discard_evaluation("after_mrl", 1)  # it was given more iterations
    assert owed(1) == [1]
    assert Summary(run, directory).evaluated("before_mrl", 3)
    assert not Summary(run, directory).evaluated("after_mrl", 1)


def test_a_reader_is_told_of_a_run_that_is_not_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path, STAGES["sft"] | {"steps": 3})
    directory, _ = run_here(run)
    checkpoint = directory.path("checkpoints/step_00000003")

    def told() -> list[str]:
        for where in (directory.path(), checkpoint, str(tmp_path), "someone/model"):
            tell_of_run(where)
        return capsys.readouterr().err.splitlines()

    assert told() == []
    summary = Summary(run, directory)
    summary.write("running")
    assert told() == ["engram: run tiny was killed (step 3)"] * 2
    with hold(directory, QuietProgress()):
        assert told() == ["engram: run tiny is running (step 3)"] * 2
    for status in ("stopped", "done"):
        summary.write(status)
        assert told() == []
