"""A run goes on under other settings: what is refused by which words, what is said, and what is
kept of the earlier ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config.changes import changes
from common.config.run import Run
from common.data.datasets.table import load_corpus
from common.failures import InputError
from common.storage.checkpoint import save_checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import QuietProgress
from learner.changed_settings import is_fixed
from learner.curriculum import CurriculumState, Ended
from learner.setup import newest, prepare
from learner.training_state import RLState, TrainingState
from rollout.iterations import RolloutState
from tests.local_source import STAGES, run_here, tiny_run


class Noted(QuietProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def go_on(run: Run) -> list[str]:
    """What the driver says when it takes up the run under this configuration."""
    noted = Noted()
    prepare(run, RunDirectory(run.runs, run.name), load_corpus(run.data, run.seed), noted)
    return noted.notes


@pytest.fixture
def started(tmp_path: Path) -> RunDirectory:
    """A run of two stages of which the first is over: `sft` after six steps, `mrl` after three."""
    directory, _ = run_here(tiny_run(tmp_path, "sft"))
    run = tiny_run(tmp_path, "sft", "mrl")
    directory.write_config(run)
    curriculum = CurriculumState((Ended("short", 2, "iterations"),), 1)
    rl = RLState(0.02, {}, curriculum, RolloutState(3))
    state = TrainingState(1, "mrl", 3, TrainingState.of(newest(directory)).metrics, rl)
    save_checkpoint(directory, 9, lambda folder: None, state.to_json())
    return directory


def mrl(**changed: Any) -> dict[str, Any]:
    return STAGES["mrl"] | changed


def test_changed_settings_are_named_one_a_line_and_the_earlier_ones_kept(
    started: RunDirectory,
) -> None:
    before = started.read_text("config.yaml")
    assert go_on(tiny_run(started.root, "sft", "mrl")) == []
    assert started.names("configs") == []

    rates = started.run().stages[1].optimizer.model_dump() | {"learning_rate": 0.00025}
    changed = tiny_run(started.root, "sft", mrl(optimizer=rates), rollout={"workers": 3})
    said, *lines = go_on(changed)
    assert "step 9" in said
    assert "configs/config-0001-until-step-00000009.yaml" in said
    assert [line.split()[0] for line in lines] == [
        "stages.mrl.optimizer.learning_rate",
        "rollout.workers",
    ]
    assert re.search(r"changed from [\d.e-]+ to 0.00025$", lines[0])
    assert lines[1].endswith("changed from 1 to 3")
    assert started.read_text("configs/config-0001-until-step-00000009.yaml") == before
    assert started.run() == changed

    go_on(tiny_run(started.root, "sft", "mrl"))
    first, second = started.names("configs")
    assert (first, second) == (said.rpartition("/")[2], "config-0002-until-step-00000009.yaml")
    assert Run.model_validate(yaml.safe_load(started.read_text(f"configs/{second}"))) == changed


def test_driver_that_died_between_keeping_the_old_and_writing_the_new_keeps_it_once(
    started: RunDirectory,
) -> None:
    started.keep_config(9)
    go_on(tiny_run(started.root, "sft", "mrl", rollout={"workers": 3}))
    assert len(started.names("configs")) == 1


def test_stage_that_is_over_stays_over_and_that_is_said(started: RunDirectory) -> None:
    longer, fewer = (
        STAGES["sft"] | {"steps": 500},
        [{"name": "short", "iterations": 2, "max_steps": 2}],
    )
    said = go_on(
        tiny_run(
            started.root,
            longer,
            mrl(curriculum=[*fewer, {"name": "held", "iterations": 1, "max_steps": 3}]),
        )
    )
    assert "  stages.sft.steps changed from 6 to 500: that stage is over and stays as it is" in said
    iterations = next(line for line in said if "stages.mrl.curriculum.held.iterations" in line)
    assert iterations.endswith("changed from 4 to 1: 3 steps of that stage are done, so it is over")


def test_curriculum_whose_begun_steps_move_is_refused_before_anything_is_written(
    started: RunDirectory,
) -> None:
    before = started.read_text("config.yaml")
    moved = [
        {"name": "short", "iterations": 1, "max_steps": 2},
        {"name": "held", "iterations": 9, "max_steps": 3},
    ]
    with pytest.raises(
        InputError, match=r"stages\.mrl\.curriculum: the checkpoint has done 3 iterations"
    ):
        go_on(tiny_run(started.root, "sft", mrl(curriculum=moved)))
    assert started.read_text("config.yaml") == before
    assert started.names("configs") == []


@pytest.mark.parametrize(
    ("stages", "sections", "refused"),
    [
        (
            ("sft", "mrl"),
            {"data": {"train": 30}},
            r"data\.train: is 30, the run in .* was started with 24",
        ),
        (
            ("sft", "mrl"),
            {"model": {"width": 48}},
            r"model\.width: is 48, the run in .* was started with 32",
        ),
        (
            ("sft", "mrl"),
            {"tokenizer": {"vocab_size": 300}},
            r"tokenizer\.vocab_size: is 300, .* with 400",
        ),
        (
            ("sft", "mrl"),
            {"data": {"kind": "rows", "train": ["a"], "eval": ["b"]}},
            r'data\.kind: is "rows", .* with "synth"',
        ),
        (
            ("sft", mrl(ppo=STAGES["mrl"]["ppo"] | {"critic": {"memory": True}})),
            {},
            r"stages\.mrl\.ppo\.critic\.memory: is true, .* with false",
        ),
        (
            ("sft", mrl(algorithm="reinforce")),
            {},
            r'stages\.mrl\.algorithm: is "reinforce", .* with "ppo"',
        ),
        (
            ("joint_lm", "mrl"),
            {},
            r'stages\.0\.stage: is "joint_lm", the run in .* was started with "sft"',
        ),
    ],
)
def test_what_may_not_change_is_refused_with_the_old_value_and_the_new(
    started: RunDirectory, stages: tuple[Any, ...], sections: dict[str, Any], refused: str
) -> None:
    corpus = load_corpus(tiny_run("x").data, 5)
    run = tiny_run(started.root, *stages, **sections)
    with pytest.raises(InputError, match=refused):
        prepare(run, started, corpus)


def test_limits_that_only_refuse_data_may_change_and_those_that_choose_may_not() -> None:
    def refused(data: dict[str, Any], **changed: Any) -> list[str]:
        before, now = (tiny_run("x", "sft", data=each) for each in (data, data | changed))
        return [change.key for change in changes(before, now) if is_fixed(change, now)]

    rows = {"kind": "rows", "train": ["a"], "eval": ["b"]}
    assert refused(rows, max_follow_ups=5000) == []
    assert refused(rows, max_follow_ups=5000, train=["c"]) == ["data.train"]
    assert refused({"kind": "sgd", "folder": "x"}, max_follow_ups=4) == ["data.max_follow_ups"]


def test_stages_may_be_added_and_left_out_at_the_end(started: RunDirectory) -> None:
    assert any("stages.1 changed from" in line for line in go_on(tiny_run(started.root, "sft")))
    go_on(tiny_run(started.root, "sft", "mrl"))


def test_damaged_configuration_is_named_by_its_file(started: RunDirectory) -> None:
    for text in ("name: [", "name: tiny\nstages: 3\n"):
        started.write_text("config.yaml", text)
        with pytest.raises(InputError, match=r"config\.yaml"):
            go_on(tiny_run(started.root, "sft", "mrl"))


def test_long_values_that_differ_at_their_ends_are_told_apart(tmp_path: Path) -> None:
    folder = "/long" * 40
    one, other = (tiny_run(f"{folder}/{end}", "sft") for end in ("a", "b"))
    (change,) = changes(one, other)
    assert str(change) == f'runs changed from "{folder}/a" to "{folder}/b"'
