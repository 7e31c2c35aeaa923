"""What travels with a submitted job, and what is said of files that cannot."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from common.config.loader import load_run
from common.failures import InputError
from deploy import working_directory
from deploy.submit import submit
from deploy.working_directory import pack

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with data and weights beside the code, in which the command is given."""
    checkout = tmp_path / "checkout"
    for name, text in {
        "deploy/__main__.py": "",
        ".gitignore": "/data/\n/private/\n",
        "data/rows.jsonl": "rows",
        "data/big.jsonl": "other rows",
        "private/polite.py": "def polite(turn): ...",
        "private/diary.txt": "",
        "weights/model.safetensors": "weights",
        "weights/config.json": "{}",
        "notes.md": "",
    }.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text)
    monkeypatch.chdir(checkout)
    return checkout


def packed(folder: Path, *named: str) -> tuple[list[str], set[str]]:
    archive = folder.parent / "package.zip"
    added = pack(folder, {name: str(folder / name) for name in named}, archive)
    with zipfile.ZipFile(archive) as package:
        return added, set(package.namelist())


def test_named_files_travel_though_they_are_ignored_and_others_do_not(folder: Path) -> None:
    added, names = packed(folder, "data/rows.jsonl", "private/polite.py", "weights", "notes.md")
    assert added == ["data/rows.jsonl", "private/polite.py", "weights/model.safetensors"]
    assert names == {
        "deploy/__main__.py",
        ".gitignore",
        "weights/config.json",
        "notes.md",
        *added,
    }


def test_a_named_file_that_is_not_there_is_said_before_anything_is_sent(folder: Path) -> None:
    with pytest.raises(InputError, match=r"data/row\.jsonl: there is no such file"):
        packed(folder, "data/row.jsonl")


def test_named_files_that_are_too_large_are_not_sent(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working_directory, "NAMED_BYTES", 10)
    with pytest.raises(InputError, match=r"weights: does not travel .* absolute path or a URI"):
        packed(folder, "data/rows.jsonl", "weights")


def test_a_package_that_ray_would_refuse_names_what_is_large(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "notes.md").write_text("long " * 1000)
    monkeypatch.setattr(working_directory, "GCS_STORAGE_MAX_SIZE", 1000)
    with pytest.raises(InputError, match=r"\.rayignore, such as notes\.md"):
        packed(folder)


def test_a_folder_without_the_code_is_not_sent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no engram"):
        packed(tmp_path)


SETTINGS = [
    "name=far",
    "runs=/shared/runs",
    "stages=[{stage: sft}]",
]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs=runs"], "runs lies in the folder that travels .* such as runs=/shared/runs"),
        (["data={kind: rows, train: [../mine.jsonl], eval: []}"], r"\.\./mine\.jsonl: lies outs"),
        (["data={kind: babi, folder: nothing}"], "nothing: there is no such file"),
        (["model.checkpoint=runs/other"], "runs/other: there is no such file"),
    ],
)
def test_a_setting_that_cannot_hold_on_the_cluster_is_said_before_it_is_asked(
    folder: Path, words: list[str], said: str
) -> None:
    (folder / "run.yaml").write_text("data: {kind: synth}\n")
    with pytest.raises(InputError, match=said):
        submit(["run.yaml"], [*SETTINGS, *words], NOWHERE)


def test_a_configuration_from_another_folder_does_not_travel(folder: Path) -> None:
    (folder.parent / "run.yaml").write_text("data: {kind: synth}\n")
    with pytest.raises(InputError, match=r"run\.yaml: lies outside of .*checkout"):
        submit(["../run.yaml"], SETTINGS, NOWHERE)


def test_the_paths_that_settings_name_are_those_on_disk(folder: Path) -> None:
    (folder / "run.yaml").write_text(
        "data: {kind: rows, train: [data/rows.jsonl, s3://bucket/rows.jsonl, some/name],"
        " eval: [/shared/rows.jsonl]}\n"
        "rewards: {cumulative: {functions: [{name: polite, path: private/polite.py:polite},"
        " {name: other, path: package.module:other}],"
        " models: [{name: quality, path: weights@0123456789abcdef}]}}\n"
    )
    places: dict[str, str] = {}
    load_run(["run.yaml"], SETTINGS, places)
    assert places == {
        "data/rows.jsonl": f"{folder}/data/rows.jsonl",
        "/shared/rows.jsonl": "/shared/rows.jsonl",
        "private/polite.py": f"{folder}/private/polite.py",
        "weights": f"{folder}/weights",
        "/shared/runs": "/shared/runs",
    }
