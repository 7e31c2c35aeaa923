"""What a run could never do is said before a cluster starts, and by `engram plan` too."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from common.config.loader import load_run
from common.data.conversations import save_rows
from common.data.datasets.table import load_corpus
from common.failures import EXIT_BAD_INPUT, InputError
from common.telemetry.prometheus import PrometheusExporter, require_port
from deploy.cli import run_command
from deploy.cluster import settle
from learner.requirements import require_data, require_possible
from tests.terminal import sentences

BASE = """
name: demo
data: {kind: synth, train: 40, eval: 4, steps: [3, 5], strategies: [cumulative]}
stages:
  - {stage: joint_lm, steps: 10}
  - {stage: mrl, episodes: 16, curriculum: [{name: first, iterations: 2, max_steps: 3}]}
"""
SUPERVISED = "stages=[{stage: sft, steps: 2}]"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE + f"runs: {tmp_path}/runs\n")
    return path


def require_all(base: Path, *overrides: str) -> None:
    run = load_run([base], overrides)
    require_possible(run)
    require_data(run, load_corpus(run.data, run.seed))


def refusal(base: Path, *overrides: str) -> InputError:
    with pytest.raises(InputError) as caught:
        require_all(base, *overrides)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("rollout.sampling.temperature=0.0", "rollout.sampling.temperature"),
        ("rollout.sampling.top_k=40", "rollout.sampling.top_k"),
        ("rollout.sampling.top_p=0.95", "rollout.sampling.top_p"),
        ("rollout.sampling.min_p=0.1", "rollout.sampling.min_p"),
        ("stages.mrl.curriculum.first.max_steps=2", "stages.mrl.curriculum.first.max_steps"),
        ("stages.mrl.curriculum.first.strategy=long_term", "stages.mrl.curriculum.first"),
        ("learner.ranks=17", "stages.mrl.episodes"),
        (
            "stages.mrl.unfreeze=[{after: 0, train: [encoder]}, {after: 2, train: [decoder]}]",
            "stages.mrl.unfreeze.1.after",
        ),
        (
            "stages=[{stage: memory_aware, steps: 9, unfreeze: [{after: 0, train: [encoder]}, "
            "{after: 9, train: [decoder]}]}]",
            "stages.memory_aware.unfreeze.1.after",
        ),
        ("model.width=102", "model.width"),
        ("model={heads: 3, width: 66}", "model.query_heads"),
        ("model.kv_heads=3", "model.kv_heads"),
        ("stages=[]", "stages"),
        ("name=..", "name"),
        ("name=a/b", "name"),
        (r'name="a\\b"', "name"),
        (r'name="a\tb"', "name"),
        ('name=""', "name"),
        (f"name={'é' * 101}", "name"),
        (f"runs=/tmp/{'r' * 256}/runs", "runs"),
    ],
)
def test_settings_that_a_run_could_never_use_are_refused(
    base: Path, override: str, where: str
) -> None:
    assert refusal(base, override).where == where


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["stages=[{stage: memory_pretrain, steps: 4}]"], "stages.memory_pretrain"),
        (
            [
                "stages=[{stage: memory_aware, steps: 9, unfreeze: [{after: 0, train: [encoder]}, "
                "{after: 4, train: [decoder, memory_attention]}]}]"
            ],
            "stages.memory_aware.unfreeze.1.train",
        ),
        (
            ["stages.mrl.unfreeze=[{after: 0, train: [memory_attention]}]"],
            "stages.mrl.unfreeze.0.train",
        ),
    ],
)
def test_stages_that_the_shape_of_the_model_has_nothing_for_are_refused(
    base: Path, overrides: list[str], where: str, tmp_path: Path
) -> None:
    shape = ["model.memory_attention=last_interaction", "model.initial_memory=normal"]
    assert refusal(base, *shape, *overrides).where == where
    require_possible(load_run([base], overrides))
    # The shape of a checkpoint is known when it is opened.
    require_possible(load_run([base], [*shape, *overrides, f"model.checkpoint={tmp_path}/first"]))


def test_a_critic_reads_no_more_than_there_is(base: Path) -> None:
    most = "stages.mrl.ppo.critic.max_tokens"
    shape = "model.max_tokens=32"
    assert refusal(base, shape, f"{most}=65").where == most
    require_possible(load_run([base], [shape, f"{most}=64"]))


def test_sampling_is_free_where_nothing_learns_from_it(base: Path) -> None:
    for setting in ("temperature=0", "top_k=5", "top_p=0.5", "min_p=0.5"):
        require_possible(load_run([base], [SUPERVISED, f"rollout.sampling.{setting}"]))
    require_possible(load_run([base], []))


def test_a_critic_that_reads_openings_needs_conversations_that_ask_for_them(base: Path) -> None:
    opening = "stages.mrl.ppo.critic.opening=true"
    require_possible(load_run([base], [opening]))
    cumulative = "stages.mrl.curriculum.first.strategy=cumulative"
    assert refusal(base, opening, cumulative).where == "stages.mrl.ppo.critic.opening"
    require_possible(load_run([base], [opening, cumulative, "stages.mrl.algorithm=a2c"]))
    custom = "environment={kind: custom, path: rollout.environments.guess_number:GuessNumber}"
    assert refusal(base, opening, custom).where == "stages.mrl.ppo.critic.opening"


def test_a_place_below_a_file_is_refused_and_one_that_is_not_there_yet_is_not(
    base: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/runs", "file/a/b"):
        assert refusal(base, f"runs={tmp_path}/{place}").where == "runs"
    require_possible(load_run([base], [f"runs={tmp_path}/not/there/yet"]))
    require_possible(load_run([base], ["runs=s3://bucket/runs"]))


def test_an_environment_that_plays_no_rows_asks_for_none(base: Path) -> None:
    custom = "environment={kind: custom, path: rollout.environments.guess_number:GuessNumber}"
    require_all(base, custom, "stages.mrl.curriculum.first.max_steps=1")


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize(
    "override", ["rollout.sampling.top_k=3", "stages.mrl.curriculum.first.max_steps=1", "name=a/b"]
)
def test_plan_and_train_refuse_alike_and_leave_nothing_behind(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, override: str
) -> None:
    assert run_command([command, str(base), override]) == EXIT_BAD_INPUT
    said = capsys.readouterr()
    assert len(sentences(said.err)) == 1
    assert said.out == ""
    assert not (tmp_path / "runs").exists()


def test_a_port_that_is_taken_is_refused_before_anything_starts(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run_command(["train", str(base), f"metrics.port={port}"]) == EXIT_BAD_INPUT
        said = capsys.readouterr().err
        assert said.splitlines()[-1].startswith("engram: metrics.port: cannot listen on")
        assert "Traceback" not in said
    with pytest.raises(InputError, match=r"metrics\.host"):
        require_port("192.0.2.77", 0)  # an address of nobody's (RFC 5737)
    require_port("127.0.0.1", 0)
    exporter = PrometheusExporter("127.0.0.1", 0, "run")
    exporter.close()
    require_port("127.0.0.1", exporter.port)  # a run that goes on takes the port of its last driver


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_scratch_folder_too_long_for_rays_sockets_names_the_variable_that_helps(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("TMPDIR", "RAY_TMPDIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert settle() == "local"
    monkeypatch.setenv(variable, "/scratch/" + "job_1234567." * 5)
    with pytest.raises(InputError, match="set RAY_TMPDIR") as caught:
        settle()
    assert caught.value.where == variable
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert settle() == "local"


READING = "stages=[{stage: reading, steps: 2}]"


def told_and_asked(turns_between: int) -> dict[str, Any]:
    """A conversation that tells a name and asks for it so many turns later."""
    small_talk = [{"query": f"hello {i}", "answer": "hi"} for i in range(turns_between)]
    asked = {"query": "my name?", "answer": "it is Ann", "facts": [{"value": "Ann", "said_in": 0}]}
    return {"query": "I am Ann", "answer": "okay", "interactions": [*small_talk, asked]}


def test_reading_needs_questions_that_one_earlier_turn_answers(base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    data = f"data={{kind: rows, train: [{rows}], eval: [{rows}]}}"
    for between in (0, 1):
        rows.write_text(json.dumps(told_and_asked(turns_between=between)) + "\n")
        require_all(base, READING, data)
    both = told_and_asked(turns_between=1)
    both["interactions"][0]["query"] = "my dog is called Rex"
    both["interactions"][-1]["answer"] = "you are Ann, and your dog is Rex"
    both["interactions"][-1]["facts"].append({"value": "Rex", "said_in": 1})
    rows.write_text(json.dumps(both) + "\n")
    refused = refusal(base, READING, data)
    assert refused.where == "stages.reading"
    assert "leave the stage out" in refused.what


def test_a_stage_that_every_conversation_is_too_long_for_is_refused(base: Path) -> None:
    stage = "stages=[{stage: memory_aware, steps: 2, max_follow_ups: 1}]"
    with pytest.raises(
        InputError, match=r"stages\.memory_aware\.max_follow_ups: is 1, and none of"
    ):
        require_all(base, stage)


def test_a_step_that_names_a_source_which_the_data_lack_is_refused(
    base: Path, tmp_path: Path
) -> None:
    rows = load_corpus(load_run([base]).data, 0).train
    for name, part in (("short.jsonl", rows[:8]), ("long.jsonl", rows[8:20])):
        save_rows(part, tmp_path / name)
    files = [f"{tmp_path}/short.jsonl", f"{tmp_path}/long.jsonl"]
    data = "data=" + json.dumps({"kind": "rows", "train": files, "eval": files[1:]})
    step = f"stages.mrl.curriculum.first.sources=[{files[0]}]"
    require_all(base, data, step)
    refused = refusal(base, data, step.replace("short", "shrt"))
    assert refused.where == "stages.mrl.curriculum.first.sources"
    assert f"did you mean '{files[0]}'?" in str(refused)
