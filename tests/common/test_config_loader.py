"""Composition of files and overrides, and what is said about a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config.algorithms import PPO
from common.config.data import BabiData, SynthData
from common.config.environment import CustomEnvironment
from common.config.loader import dump_run, load_run
from common.config.mrl import MRL
from common.failures import InputError

BASE = """
name: demo
data: {kind: synth, train: 100, eval: 10, steps: [3, 5]}
stages:
  - {stage: joint_lm, steps: 10}
  - stage: mrl
    episodes: 16
    curriculum:
      - {name: first, iterations: 2, max_steps: 3}
    ppo: {clip: 0.1}
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
    return caught.value


def mrl(path: Path, *overrides: str) -> MRL:
    stage = load_run([path], overrides).stages[1]
    assert isinstance(stage, MRL)
    return stage


def test_later_files_merge_into_mappings_and_replace_lists(base: Path, tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("data: {steps: [7]}\nlearner: {ranks: 2}\n")
    run = load_run([base, over], [])
    assert run.data == SynthData(train=100, eval=10, steps=(7,))
    assert run.learner.ranks == 2


def test_overrides_reach_into_lists_and_create_what_was_default(base: Path) -> None:
    stage = mrl(
        base,
        "stages.1.episodes=32",
        "stages.1.curriculum.0.name=warm up",
        "stages.1.ppo.kl_target=3.5",
    )
    assert stage.episodes == 32
    assert stage.curriculum[0].name == "warm up"
    assert (stage.ppo.clip, stage.ppo.kl_target) == (0.1, 3.5)
    run = load_run(
        [base],
        [
            "rollout.sampling.temperature=0",
            "data.steps=[1, 2]",
            "stages.1.ppo.bptt_turns=all",
            "learner.ranks=2",
            "learner.ranks=3",
        ],
    )
    assert run.rollout.sampling.temperature == 0
    assert run.learner.ranks == 3


def test_stages_and_curriculum_steps_are_addressed_by_name_or_number(base: Path) -> None:
    named = mrl(base, "stages.mrl.ppo.kl=0.5", "stages.mrl.curriculum.first.iterations=7")
    assert (named.ppo.kl, named.ppo.clip, named.curriculum[0].iterations) == (0.5, 0.1, 7)
    assert named == mrl(base, "stages.1.ppo.kl=0.5", "stages.1.curriculum.0.iterations=7")


def test_of_two_stages_of_one_name_a_number_says_which(base: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice.yaml"
    twice.write_text("stages: [{stage: sft}, {stage: joint_lm}, {stage: sft}]")
    told = str(fault([base, twice], "stages.sft.steps=3"))
    assert "stages holds 2 items named 'sft': write stages.0 or stages.2" in told
    run = load_run([base, twice], ["stages.2.steps=3"])
    assert [stage.total_steps for stage in run.stages] == [200, 200, 3]
    keys = [run.stage_key(index) for index in range(3)]
    assert keys == ["stages.0", "stages.joint_lm", "stages.2"]


def test_a_mapping_that_changes_its_kind_forgets_the_keys_of_the_old_kind(
    base: Path, tmp_path: Path
) -> None:
    over = tmp_path / "babi.yaml"
    over.write_text("data: {kind: babi, folder: /here}\n")
    assert load_run([base, over], []).data == BabiData(folder="/here")
    assert load_run([base], ["data.kind=babi", "data.folder=/here"]).data == BabiData(
        folder="/here"
    )


GAME = """
name: game
data: {kind: prompts, train: [prompts.jsonl]}
model: {causal: {path: small, interactions: 2, max_tokens: 64}}
stages: [{stage: lm_rl, episodes: 4, iterations: 1}]
environment: {kind: custom, path: "game.py:Game", arguments: {size: 3}, deadline: 4}
"""


def test_an_empty_mapping_takes_away_what_is_there(base: Path, tmp_path: Path) -> None:
    assert mrl(base).ppo.clip == 0.1
    assert mrl(base, "stages.mrl.ppo={}").ppo == PPO()
    until = tmp_path / "until.yaml"
    until.write_text(BASE.replace("steps: 10}", "steps: 10, until: {train/loss_lm: 0.5}}"))
    assert load_run([until]).stages[0].until == {"train/loss_lm": 0.5}
    assert load_run([until], ["stages.joint_lm.until={}"]).stages[0].until == {}


def test_another_path_forgets_the_arguments_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "game.yaml"
    path.write_text(GAME)

    def environment(*overrides: str) -> CustomEnvironment:
        found = load_run([path], overrides).environment
        assert isinstance(found, CustomEnvironment)
        return found

    other = environment("environment.path=other.py:Game")
    assert (Path(other.path).name, other.arguments, other.deadline) == ("other.py:Game", {}, 4)
    assert environment("environment.arguments={other: 1}").arguments == {"other": 1}
    causal = load_run([path], ["model.causal.path=larger"]).model.causal
    assert causal is not None
    assert (causal.interactions, causal.max_tokens) == (2, 64)


def test_setting_one_key_keeps_the_rest_of_a_sections_own_default(base: Path) -> None:
    assert mrl(base).optimizer.learning_rate == 3e-4
    changed = mrl(base, "stages.1.optimizer.weight_decay=0.5").optimizer
    assert (changed.learning_rate, changed.warmup_fraction, changed.weight_decay) == (
        3e-4,
        0.0,
        0.5,
    )


def test_the_dumped_run_loads_to_an_equal_run(base: Path, tmp_path: Path) -> None:
    run = load_run([base], ["seed=5", "rewards.single.bleu=null"])
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_run(run))
    assert load_run([path], []) == run


@pytest.mark.parametrize(
    ("override", "needles"),
    [
        ("learner.learning_rat=1", ["unknown key learner.learning_rat"]),
        ("learner.rank=1", ["unknown key learner.rank", "did you mean 'ranks'"]),
        ("stages.1.ppo.clp=1", ["unknown key stages.mrl.ppo.clp", "did you mean 'clip'"]),
        (
            "stages.0.optimizer.learning_rat=1",
            ["stages.joint_lm.optimizer.learning_rat", "'learning_rate'"],
        ),
        ("data.trian=5", ["unknown key data.trian", "'train'"]),
        ("rewards.single.bleu.wight=1", ["rewards.single.bleu.wight", "'weight'"]),
        (
            "stages.1.curriculum.0.iteration=1",
            ["stages.mrl.curriculum.first.iteration", "'iterations'"],
        ),
        ("lerner.ranks=1", ["unknown key lerner", "'learner'"]),
        ("data.kind=snyth", ["data.kind is 'snyth'", "did you mean 'synth'"]),
        ("stages.1.stage=mlr", ["stages.1.stage is 'mlr'", "'mrl'"]),
        ("learner.ranks=two", ["learner.ranks is 'two'", "should be a valid integer"]),
        ("learner.ranks=0", ["learner.ranks is 0", "greater than or equal to 1"]),
        ("data.steps=3", ["data.steps is 3", "list"]),
        ("data.steps.1=x", ["data.steps.1 is 'x'"]),
        ("stages.1.ppo.bptt_turns=some", ["stages.mrl.ppo.bptt_turns is 'some'"]),
        ("stages.7.steps=3", ["stages holds 2 items", "'7'", "valid are joint_lm, mrl"]),
        ("stages.mlr.ppo.kl=1", ["stages holds 2 items", "'mlr'", "did you mean 'mrl'"]),
        ("stages.mrl.ppo.clp=1", ["unknown key stages.mrl.ppo.clp", "did you mean 'clip'"]),
        ("stages.mrl.curriculum=[]", ["stages.mrl.curriculum is []", "at least 1 item"]),
        (
            "stages.mrl.curriculum=[{name: a, iterations: 1, max_steps: 1}, "
            "{name: a, iterations: 1, max_steps: 2}]",
            ["stages.mrl.curriculum is", "has two steps named 'a'"],
        ),
        ("name.first=x", ["name is 'demo'", "'first'"]),
        ("name", ["key=value"]),
        ("name=[1", ["broken YAML"]),
        ("stages.1.ppo=null", ["stages.mrl.ppo is None"]),
    ],
)
def test_a_wrong_override_is_named_with_its_key_and_the_nearest_valid_one(
    base: Path, override: str, needles: list[str]
) -> None:
    error = fault([base], "seed=1", override, "runs=elsewhere")
    assert error.where == override
    for needle in needles:
        assert needle in error.what


@pytest.mark.parametrize(
    ("text", "needles"),
    [
        ("name: a\ndata: {kind: synth\n", ["broken YAML in line 3"]),
        ("name: a\nname: b\n", ["line 2", "'name' is written twice"]),
        ("- 1\n- 2\n", ["mapping of settings"]),
        ("", ["mapping of settings"]),
        ("data: {kind: synth}\nstages: []\n", ["name is missing"]),
        ("name: a\ndata: {train: 3}\nstages: []\n", ["data.kind is missing", "babi"]),
        ("name: a\ndata: {kind: synth, steps: [0]}\nstages: []\n", ["data.steps.0 is 0"]),
        (
            "name: a\ndata: {kind: synth}\nstages: [{stage: mrl}]\n",
            ["stages.mrl.curriculum is missing"],
        ),
        ("name: a\ndata: {kind: synth}\nstages: [3]\n", ["stages.0 is 3"]),
        ("name: a\ndata: 5\nstages: []\n", ["data is 5"]),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(
    tmp_path: Path, text: str, needles: list[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    error = fault([path])
    assert error.where == str(path)
    for needle in needles:
        assert needle in error.what


def test_of_two_files_the_one_that_holds_the_fault_is_named(base: Path, tmp_path: Path) -> None:
    over = tmp_path / "over.yaml"
    over.write_text("learner: {rank: 2}\n")
    assert fault([base, over]).where == str(over)
    assert fault([over, base]).where == str(over)


def test_a_missing_folder_or_binary_file_is_named(tmp_path: Path) -> None:
    assert fault([tmp_path / "absent.yaml"]).where == str(tmp_path / "absent.yaml")
    assert fault([tmp_path]).where == str(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "text file" in fault([tmp_path / "binary.yaml"]).what
