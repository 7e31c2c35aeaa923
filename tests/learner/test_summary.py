"""summary.json keeps stages apart, and adds up what was interrupted."""

from __future__ import annotations

from pathlib import Path

from learner.summary import Summary
from tests.local_source import STAGES, run_here, tiny_run


def test_two_stages_of_one_kind_have_figures_of_their_own_and_a_resumed_one_adds_up(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "sft", STAGES["sft"] | {"steps": 3})
    directory, _ = run_here(run)
    summary = Summary(run, directory)
    summary.spent(0, "sft", 5.0, 6)
    summary.write("running", 0.0)
    resumed = Summary(run, directory)
    resumed.spent(1, "sft", 2.0, 3)
    resumed.spent(1, "sft", 1.0, 3)
    first, second = resumed.value["stages"]
    assert [(each["index"], each["name"], each["wall_seconds"], each["steps"]) for each in (first, second)] == [
        (0, "sft", 5.0, 6),
        (1, "sft", 3.0, 3),
    ]
    assert first["metrics"]["train/steps"]["last"] == 6
    assert second["metrics"]["train/steps"] == {"first": 7, "last": 9}
    assert first["metrics"]["train/loss_lm"]["first"] != second["metrics"]["train/loss_lm"]["first"]
