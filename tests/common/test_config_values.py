"""Values that YAML can write and a setting cannot have: each is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config.loader import dump_run, load_run
from common.config.yaml_values import parse_yaml
from common.failures import InputError
from common.storage.run_directory import RunDirectory

BASE = """
name: demo
data: {kind: synth, train: 100, eval: 10, steps: [3, 5]}
stages:
  - {stage: joint_lm, steps: 10}
  - {stage: mrl, episodes: 16, curriculum: [{name: first, iterations: 2, max_steps: 3}]}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def fault(paths: list[Path], *overrides: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load_run(paths, overrides)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return caught.value


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("learner.ranks=true", "learner.ranks is True, but should be a number"),
        ("learner.gpus_per_rank=no", "learner.gpus_per_rank is False, but should be a number"),
        ("data.steps=[3, true]", "data.steps is [3, True], but should be a number"),
        ("stages.mrl.curriculum.first.iterations=on", "should be a number"),
        ("stages.mrl.ppo.bptt_turns=true", "should be a number"),
        (
            "stages.mrl.ppo.whiten=1",
            "stages.mrl.ppo.whiten is 1, but should be true or false",
        ),
        ("rewards.symmetric=0.0", "should be true or false"),
        ("stages.mrl.freeze_encoder=true", "unknown key stages.mrl.freeze_encoder; unfreeze took"),
        ("stages.mrl.unfreeze=[{after: 0, train: encoder}]", "should be a valid list"),
        ("stages.mrl.unfreeze=[{after: 0, trian: [encoder]}]", "did you mean 'train'?"),
        ("stages.joint_lm.optimizer.learning_rate=.nan", "should be a finite number"),
        ("stages.joint_lm.optimizer.learning_rate=1e400", "should be a finite number"),
        ("learner.batch_deadline=.inf", "should be a finite number"),
        ("rewards.single.bleu.clip=[-.inf, 1]", "should be a finite number"),
        ("evaluation.episodes=1" + "0" * 30, "should be smaller than 2 to the power of 63"),
        ("seed=" + "9" * 5000, "put what is meant as text in quotes"),
        ("model.width=0", "greater than or equal to 1"),
        ("model.kv_heads=-2", "greater than or equal to 1"),
        ("model.max_tokens=-5", "greater than or equal to 8"),
        ("model.initial_memory_std=-1", "greater than or equal to 0"),
        ("stages.mrl.curriculum=[]", "at least 1 item"),
        ("name=on", "name is True, but should be a valid string; put it in quotes"),
        ("name=12", "put it in quotes"),
        ("name=[[" + "[" * 5000, "nested too deep"),
        ("name=&a [*a]", "a value contains itself"),
        ("rewards=&a {single: *a}", "a value contains itself"),
        ("name={[1, 2]: x}", "a mapping or a list cannot be a key"),
        ("name={{ env.RUN }}", "was a template not filled in?"),
        ("learner.log_every=0x", "valid integer"),
        ("learner.log_every=0b_", "put what is meant as text in quotes"),
        ("learner.log_every=!!int ten", "put what is meant as text in quotes"),
        ("name=!!set {a, b}", "holds a set"),
        ("name=!!binary aGk=", "holds a bytes"),
        (r'name="a\ud83d"', "holds characters that are no text"),
        (r'runs="a\0b"', "holds characters that are no text"),
        ("name=!!timestamp 2026-11-31", "put what is meant as text in quotes"),
        ("na\udce9me=x", "is no text in the encoding of this terminal"),
    ],
)
def test_a_value_that_no_setting_has_is_one_sentence(base: Path, override: str, what: str) -> None:
    assert what in str(fault([base], override))


def test_a_template_that_was_not_filled_in_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("# a run\n\nname: {{ name }}\ndata: {kind: synth}\n")
    found = fault([path])
    assert found.where == str(path)
    assert "line 3" in found.what
    assert "template" in found.what


@pytest.mark.parametrize("name", ["2026-11-29", "2026-11-31", "2026-11-29 12:00:00"])
def test_a_date_is_a_name(base: Path, tmp_path: Path, name: str) -> None:
    run = load_run([base], [f"name={name}"])
    assert run.name == name
    saved = tmp_path / "saved.yaml"
    saved.write_text(dump_run(run))
    assert load_run([saved]) == run


def test_numbers_and_truths_are_read_as_ever(base: Path) -> None:
    run = load_run(
        [base],
        [
            "learner.ranks=2",
            "rewards.symmetric=yes",
            "stages.joint_lm.optimizer.learning_rate=1e-3",
            "evaluation.episodes='7'",
            "learner.gpus_per_rank=1",
            "stages.mrl.ppo.bptt_turns=all",
        ],
    )
    assert run.stages[0].optimizer.learning_rate == 1e-3  # type: ignore[union-attr]
    assert (run.learner.ranks, run.rewards.symmetric, run.evaluation.episodes) == (2, True, 7)


def test_an_override_as_long_as_a_list_of_files_is_read(base: Path) -> None:
    files = [f"/data/conversations_{number:04d}.jsonl" for number in range(500)]
    data = f"data={{kind: rows, train: [{', '.join(files)}], eval: [{files[0]}]}}"
    assert list(load_run([base], [data]).data.train) == files  # type: ignore[arg-type]
    long = "x" * 5000
    fault([base], f"data={{kind: rows, train: [{long}], eval: [{long}], nothing: 1}}")
    # A source that could be a name of `datasets`, too long for a file system to be asked about.
    assert load_run([base], [f"data={{kind: rows, train: [{long}], eval: [b]}}"])


def test_the_configuration_of_a_run_is_read_as_strictly(base: Path, tmp_path: Path) -> None:
    run = load_run([base], [f"runs={tmp_path}"])
    directory = RunDirectory(run.runs, run.name)
    directory.write_config(run)
    assert directory.run() == run
    for text in ("name: {{x}}", "name: 0b_", "[" * 5000, "name: a\nname: b"):
        directory.write_text("config.yaml", text)
        with pytest.raises(InputError, match="broken YAML"):
            directory.run()


def test_what_yaml_writes_in_several_ways_is_one_value() -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x\nc: {<<: {d: null}}", "here") == {
        "a": [1, 2],
        "b": [1, 2],
        "c": {"d": None},
    }
