"""Epochs of supervised stages: which number of steps they come to, and that a run under them is the
run under these steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from common.config.loader import load_run
from common.config.run import Run
from common.config.stages import SupervisedStage
from common.data.datasets.table import load_corpus
from common.failures import InputError
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import QuietProgress
from deploy import cli
from deploy.plan_summary import plan_summary
from learner.driver import make_ready
from learner.parallel.group import Job
from learner.requirements import require_possible
from learner.setup import newest
from learner.stages.epochs import with_steps
from learner.stages.supervised import build_objective
from tests.learner.test_causal_pipeline import causal_run
from tests.local_preferences import preference_run
from tests.local_source import StoppingRecorder, comparable_rows, prepared, run_here, tiny_run
from tests.tiny_causal import WRITES

REACTIVE = ("joint_lm", "sft", "memory_pretrain", "reading")
CAUSAL: dict[str, dict[str, Any]] = {
    "lm_text": {"stage": "lm_text"},
    "lm_sft": {"stage": "lm_sft"},
    "lm_sft, conversations": {"stage": "lm_sft", "examples": "conversations"},
}


def counted(run: Run) -> Run:
    return with_steps(run, load_corpus(run.data, run.seed), RunDirectory(run.runs, run.name))


def run_of(name: str, folder: Path, **length: Any) -> Run:
    """A run of one stage. Its texts are longer than the model reads at once."""
    small: dict[str, Any] = {"batch_size": 4} | length
    if name == "reward_model":
        return preference_run(folder, {"stage": "reward_model"} | small)
    if name == "memory_aware":
        longest = {"max_follow_ups": 2}
        return tiny_run(folder, {"stage": "memory_aware"} | longest | small)
    if name in REACTIVE:
        return tiny_run(folder, {"stage": name} | small)
    settings = causal_run(folder, text_memory=WRITES).model_dump(mode="json")
    synth = tiny_run(folder).model_dump(mode="json")["data"]
    return Run.model_validate(settings | {"data": synth, "stages": [CAUSAL[name] | small]})


@pytest.mark.parametrize("name", [*REACTIVE, "memory_aware", "reward_model", *CAUSAL])
def test_an_epoch_is_a_pass_over_the_examples_of_the_stage(name: str, tmp_path: Path) -> None:
    for epochs in (1, 2.5):
        run = counted(run_of(name, tmp_path, epochs=epochs))
        stage = run.stages[0]
        assert isinstance(stage, SupervisedStage)
        directory = prepared(run)
        objective, _ = build_objective(Job(run, directory, 0, "local"), newest(directory), 0)
        steps = math.ceil(epochs * objective.examples / 4)
        assert (stage.total_steps, stage.steps, stage.epochs) == (steps, steps, None)


def test_steps_and_epochs_are_refused_together(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "name: a\ndata: {kind: synth}\nstages: [{stage: sft, steps: 7, optimizer: {beta1: 0.5}}]\n"
    )
    with pytest.raises(InputError, match=r"stages\.sft.*steps \(7\) and epochs \(2\) both say how"):
        load_run([config], ["stages.sft.epochs=2"])
    with pytest.raises(InputError, match=r"stages\.sft.*neither steps nor epochs"):
        load_run([config], ["stages.sft.steps=null"])
    with pytest.raises(InputError, match=r"stages\.sft\.epochs is 0"):
        load_run([config], ["stages.sft.steps=null", "stages.sft.epochs=0"])
    stage = load_run([config], ["stages.sft.steps=null", "stages.sft.epochs=2"]).stages[0]
    assert isinstance(stage, SupervisedStage)
    assert (stage.steps, stage.epochs, stage.optimizer.beta1) == (None, 2, 0.5)


def test_epochs_that_other_settings_rule_out_are_refused_by_name(tmp_path: Path) -> None:
    too_few = {"stage": "joint_lm", "epochs": 0.1, "batch_size": 4, "decoder_only_steps": 50}
    with pytest.raises(InputError, match=r"stages\.joint_lm\.epochs: comes to \d+ steps: .*never"):
        counted(tiny_run(tmp_path, too_few))
    phases = [{"after": 0, "train": ["decoder"]}, {"after": 50, "train": ["encoder"]}]
    late = {"stage": "memory_aware", "epochs": 1, "batch_size": 8, "unfreeze": phases}
    run = tiny_run(tmp_path, late)
    require_possible(run)
    with pytest.raises(InputError, match=r"unfreeze\.1\.after: is 50, and the stage is over after"):
        require_possible(counted(run))


def test_a_run_under_epochs_is_the_run_under_their_steps(tmp_path: Path) -> None:
    """Schedule, resume and a rule that bounds it."""
    optimizer = {"warmup_fraction": 0.3, "final_fraction": 0.0}
    stage = {"stage": "sft", "batch_size": 16, "optimizer": optimizer}
    unreached = {"until": {"train/accuracy_lm": 1.0}, "decay_steps": 1}
    for name, rule in (("free", {}), ("rule", unreached)):
        by_epochs = counted(tiny_run(tmp_path, stage | rule | {"epochs": 2}, name=name))
        steps = by_epochs.stages[0].total_steps
        assert steps > 5
        by_steps = tiny_run(tmp_path, stage | rule | {"steps": steps}, name=f"{name} steps")
        expected, _ = run_here(by_steps)

        def stopping(run: Run, directory: RunDirectory, step: int) -> StoppingRecorder:
            recorder = StoppingRecorder(run, directory, step)
            recorder.stops_after = 3
            return recorder

        run_here(by_epochs, make_recorder=stopping)
        resumed, _ = run_here(by_epochs)
        assert newest(resumed).step == steps
        assert comparable_rows(resumed) == comparable_rows(expected)


def test_plan_and_run_directory_have_the_steps(tmp_path: Path) -> None:
    asked = tiny_run(tmp_path, {"stage": "sft", "epochs": 3, "batch_size": 8})
    run = counted(asked)
    steps = run.stages[0].total_steps
    corpus = load_corpus(run.data, run.seed)
    line = next(line for line in plan_summary(run, corpus).splitlines() if line.startswith("  sft"))
    assert line.split()[3:6] == ["8", str(steps), f"{8 * steps / len(corpus.pairs):.3g}"]
    told: list[str] = []

    class Notes(QuietProgress):
        def note(self, text: str) -> None:
            told.append(text)

    directory = RunDirectory(run.runs, run.name)
    ready = make_ready(asked, directory, Notes())
    assert ready.run.stages[0].total_steps == steps == directory.run().stages[0].total_steps
    told.clear()
    again = make_ready(asked, directory, Notes())
    assert again.run == ready.run
    assert not [text for text in told if "changed" in text]


def test_the_command_plan_shows_steps_and_refuses_what_they_rule_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"name: a\nruns: {tmp_path}\ndata: {{kind: synth, train: 12, eval: 4, steps: [2]}}\n"
        "stages: [{stage: memory_aware, epochs: 2, batch_size: 4}]\n"
    )
    assert cli.run_command(["plan", str(config)]) == 0
    row = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("  memory_aware")
    )
    assert row.split()[1:6] == ["12", "conversations", "4", "6", "2"]
    late = "stages.0.unfreeze=[{after: 0, train: [decoder]}, {after: 6, train: [encoder]}]"
    assert cli.run_command(["plan", str(config), late]) == 2
    said = capsys.readouterr().err
    assert "stages.memory_aware.unfreeze.1.after" in said
    assert "the stage is over after 6" in said
