"""The run's folder, on a local disk and in a store that is not one."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import fsspec
import pytest
import yaml

from common.config.data import SynthData
from common.config.mrl import MRL, CurriculumStep
from common.config.run import Run
from common.failures import InputError
from common.storage.checkpoint import open_checkpoint
from common.storage.run_directory import RunDirectory, write_atomically


@pytest.fixture(params=["local", "file://", "memory://"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    if request.param == "memory://":
        return RunDirectory(f"memory://{tmp_path.name}", "first")
    return RunDirectory(
        f"{request.param if request.param != 'local' else ''}{tmp_path}/runs", "first"
    )


def test_files_are_written_replaced_listed_and_removed(run: RunDirectory) -> None:
    assert not run.exists()
    assert run.names("logs") == []
    run.write_text("logs/a.log", "one")
    run.write_text("logs/a.log", "two")
    run.write_json("logs/b.json", {"ünïcode": [1]})
    assert run.names("logs") == ["a.log", "b.json"]
    assert run.read_text("logs/a.log") == "two"
    assert json.loads(run.read_text("logs/b.json")) == {"ünïcode": [1]}
    run.remove("logs/a.log")
    assert run.names("logs") == ["b.json"]
    run.remove("logs")
    assert not run.exists("logs/b.json")


def test_lines_are_appended(run: RunDirectory) -> None:
    run.append_line("metrics.jsonl", "1")
    run.append_line("metrics.jsonl", "2")
    assert run.read_text("metrics.jsonl") == "1\n2\n"


def test_the_path_shown_to_a_user_opens(run: RunDirectory) -> None:
    run.write_text("logs/a.log", "one")
    with fsspec.open(run.path("logs/a.log"), "r") as file:
        assert file.read() == "one"


def test_a_run_directory_means_the_same_place_in_an_actor_with_another_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(RunDirectory("runs", "demo"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(pickled).local == tmp_path / "runs" / "demo"


def test_configuration_environment_and_summary_can_be_read_again(run: RunDirectory) -> None:
    config = Run(
        name="first",
        data=SynthData(),
        stages=(
            MRL(stage="mrl", curriculum=(CurriculumStep(name="one", iterations=1, max_steps=2),)),
        ),
    )
    run.write_config(config)
    assert Run.model_validate(yaml.safe_load(run.read_text("config.yaml"))) == config
    run.write_environment()
    environment = json.loads(run.read_text("environment.json"))
    assert environment["cpu_count"] == os.cpu_count()
    assert "torch" in environment["packages"]
    assert "vllm" not in environment["packages"] or environment["packages"]["vllm"]
    run.write_summary({"name": "first", "stages": []})
    assert json.loads(run.read_text("summary.json"))["name"] == "first"
    assert RunDirectory.existing(run.path()) == run


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_a_name_that_is_no_folder_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="plain folder name"):
        RunDirectory(str(tmp_path), name)


def test_unknown_protocols_and_folders_that_are_no_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere://x"):
        RunDirectory("nowhere://x", "a")
    with pytest.raises(InputError, match=r"no-run: is not a run directory"):
        RunDirectory.existing(f"{tmp_path}/no-run")


def test_a_run_of_nearly_that_name_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/demo", "others/first"):
        Path(name).mkdir(parents=True)
        Path(name, "config.yaml").write_text("")
    for typed, meant in {
        "demo": "runs/demo",
        "somewhere/demo": "runs/demo",
        "runs/dmo": "runs/demo",
        "others/frist": "others/first",
    }.items():
        for opening in (RunDirectory.existing, open_checkpoint):
            with pytest.raises(InputError, match=rf"; did you mean .*{meant}\?$"):
                opening(typed)
    with pytest.raises(InputError, match=r"config\.yaml$"):
        RunDirectory.existing("others/demonstration")


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "summary.json"
    write_atomically(target, b"old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
