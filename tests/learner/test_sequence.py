"""Supervised stages in a row share a group of ranks."""

from __future__ import annotations

from pathlib import Path

from common.storage.run_directory import RunDirectory
from common.telemetry.metrics import Metrics
from learner.group_watch import GroupWatch
from learner.parallel.group import Job, OneRank
from learner.recorder import Recorder
from learner.setup import newest
from learner.stages.planning import stages_by_group
from learner.stages.sequence import run_stages
from learner.summary import Summary
from tests.local_source import STAGES, StoppingRecorder, comparable_rows, prepared, tiny_run

SHORT = STAGES["sft"] | {"steps": 2}


class Shown:
    """What a terminal would show."""

    def __init__(self) -> None:
        self.lines: list[object] = []

    def stage(self, name: str, total: int, unit: str = "steps") -> None:
        self.lines.append((name, total))

    def update(self, step: int, **figures: float) -> None:
        self.lines.append(step)

    def note(self, text: str) -> None:
        self.lines.append(text)

    def close(self) -> None:
        raise AssertionError("the driver closes it")


def run_together(job: Job, recorder: Recorder) -> None:
    try:
        run_stages(OneRank(), job, recorder)
    finally:
        recorder.close()


def test_only_supervised_stages_that_follow_one_another_share_ranks(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "joint_lm", "sft", "mrl", "mrl", "sft", "memory_aware")
    assert stages_by_group(run.stages) == [[0, 1], [2], [3], [4, 5]]


def test_stages_of_one_group_learn_what_stages_of_several_groups_learn(tmp_path: Path) -> None:
    names = ("joint_lm", "sft", "memory_pretrain", "memory_aware")
    one, several = (tiny_run(tmp_path / each, *names) for each in ("one", "several"))
    together = prepared(one)
    run_together(Job(one, together, 0, "", following=3), Recorder(one, together, 0))
    apart = prepared(several)
    for stage in range(len(names)):
        run_together(Job(several, apart, stage, ""), Recorder(several, apart, newest(apart).step))
    rows = comparable_rows(together)
    assert {row["stage"] for row in rows} == set(names)
    assert rows == comparable_rows(apart)


def test_a_stop_in_the_last_step_of_a_stage_does_not_begin_the_next_one(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, SHORT, "memory_aware")
    directory = prepared(run)
    stopping = StoppingRecorder(run, directory, 0)
    stopping.stops_after = 2
    run_together(Job(run, directory, 0, "", following=1), stopping)
    assert newest(directory).step == 2
    # A group that starts again finds the first stage done.
    run_together(Job(run, directory, 0, "", following=1), Recorder(run, directory, 2))
    assert newest(directory).step == run.stages[0].total_steps + run.stages[1].total_steps
    assert [row["stage"] for row in comparable_rows(directory)][:3] == [
        "sft",
        "sft",
        "memory_aware",
    ]


def test_a_watch_shows_the_end_of_a_stage_that_another_has_followed(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, SHORT, STAGES["memory_aware"] | {"steps": 1})
    directory = RunDirectory(run.runs, run.name)
    recorder, progress, summary = Recorder(run, directory, None), Shown(), Summary(run, directory)

    def record(stage: int, done: int, global_step: int) -> None:
        metrics = Metrics()
        metrics.record("run/stage", stage)
        metrics.record("train/steps", 1)
        recorder.record(0, 1, done, global_step, metrics.drain())

    with summary.stage(0):
        watch = GroupWatch(
            Job(run, directory, 0, "", following=1),
            recorder,  # type: ignore[arg-type]  # the same calls
            progress,
            summary,
            None,
        )
        recorder.begin(0, 0, 0, None)
        record(0, 1, 1)
        record(0, 2, 2)
        recorder.begin(1, 0, 2, None)
        record(1, 1, 3)
        watch.show()
    recorder.close()
    assert progress.lines == [("sft", 2), 2, ("memory_aware", 1), 1]
    stages = summary.write("done")["stages"]
    assert [(each["name"], each["metrics"]["train/steps"]["last"]) for each in stages] == [
        ("sft", 2),
        ("memory_aware", 1),
    ]
