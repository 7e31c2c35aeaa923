"""Settings that name files mean the same wherever a process of the run works, and whoever reads
them again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from common.config.conversion import PreferenceColumns, RowColumns
from common.config.data import SgdData
from common.config.errors import choice_of
from common.config.loader import dump_run, load_run, load_section
from common.config.locations import AfterValidator, named_alike, same_place
from common.config.run import Run
from common.data.conversations import load_rows

CONFIG = """
name: relative
data:
  kind: rows
  train: [talks.jsonl, deep/talks.parquet, ./odd, corpus, someone/talks,
          "someone/talks:part:train", kept]
  eval: [~/held.jsonl, "s3://bucket/held.jsonl", /abs/../held.jsonl]
  texts: [book.jsonl.gz]
tokenizer: {path: words}
model: {checkpoint: ../before/start}
stages: [{stage: sft}]
rewards:
  cumulative:
    cosine: {model: local-sentences}
    functions:
      - {name: mine, path: rewards/mine.py:polite}
      - {name: installed, path: package.module:polite}
    models:
      - {name: ours, path: before/judge}
      - {name: theirs, path: someone/judge}
      - {name: remote, path: "s3://bucket/judge"}
"""

PLAIN_TEXTS = {
    "name",
    "kind",
    "stage",
    "size",
    "host",
    "url",
    "pattern",
    "stop",
    "targets",
    "arguments",
    "label",
    "until",
    "read",
    "write",
    "open",
    "close",
    "steps",
    "node_labels",
    "project",
    "entity",
    "experiment",
    "uri",  # of MLflow, which gives words such as `databricks` a meaning
    "separator",
    "step",
    "unlisted",
    "marker",
    *RowColumns.model_fields,
    *PreferenceColumns.model_fields,
}
"""Settings whose texts name no file."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = tmp_path / "here"
    for name in ("kept", "local-sentences", "before/judge"):
        (here / name).mkdir(parents=True)
    (here / "run.yaml").write_text(CONFIG)
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(here)
    return here


def test_what_names_a_file_is_absolute_and_hub_names_uris_and_modules_stay(folder: Path) -> None:
    run = load_run(["run.yaml"])
    data: Any = run.data
    names = ["talks.jsonl", "deep/talks.parquet", "odd"]
    assert data.train == (
        *(f"{folder}/{name}" for name in names), "corpus", "someone/talks",
        "someone/talks:part:train", f"{folder}/kept",
    )  # fmt: skip
    assert data.eval == ("/home/somebody/held.jsonl", "s3://bucket/held.jsonl", "/held.jsonl")
    assert data.texts == (f"{folder}/book.jsonl.gz",)
    assert run.tokenizer.path == f"{folder}/words"
    assert run.model.checkpoint == f"{folder.parent}/before/start"
    assert run.runs == f"{folder}/runs"
    mix = run.rewards.cumulative
    assert mix.cosine is not None
    assert mix.cosine.model == f"{folder}/local-sentences"
    assert [each.path for each in mix.functions] == [
        f"{folder}/rewards/mine.py:polite",
        "package.module:polite",
    ]
    assert [each.path for each in mix.models] == [
        f"{folder}/before/judge",
        "someone/judge",
        "s3://bucket/judge",
    ]


def test_overrides_and_sections_of_commands_are_relative_to_the_same_folder(folder: Path) -> None:
    run = load_run(["run.yaml"], ["runs=elsewhere", "data.eval=[other.jsonl]"])
    data: Any = run.data
    assert (run.runs, data.eval) == (f"{folder}/elsewhere", (f"{folder}/other.jsonl",))
    assert load_section(SgdData, {"folder": "sgd"}, [], []).folder == f"{folder}/sgd"
    backbone = [
        "stages=[{stage: reward_model, backbone: kept}]",
        "data={kind: preferences, train: [p.jsonl]}",
    ]
    stage: Any = load_run(["run.yaml"], backbone).stages[0]
    assert stage.backbone == f"{folder}/kept"


def test_written_and_read_in_another_folder_the_run_is_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(["run.yaml"])
    (tmp_path / "again.yaml").write_text(dump_run(run))
    monkeypatch.chdir(tmp_path)
    assert load_run(["again.yaml"]) == run
    older = Run.model_validate(run.model_dump() | {"runs": "runs"})
    assert older.runs == "runs"


def texts(
    section: type[BaseModel], seen: set[type[BaseModel]]
) -> Iterator[tuple[str, Any, list[Any]]]:
    """(name, annotation, notes) of every setting at any depth that holds texts."""
    for name, field in section.model_fields.items():
        annotation, choice = field.annotation, choice_of(field.annotation, field.discriminator)
        while choice.item is not None:
            annotation, choice = choice.item, choice_of(choice.item)
        if choice.sections:
            for below in set(choice.sections) - seen:
                seen.add(below)
                yield from texts(below, seen)
        elif "str" in str(annotation):
            yield name, annotation, field.metadata


def said(annotation: Any) -> list[Any]:
    """What is noted beside the members of an annotation, and beside itself."""
    return [note for part in (annotation, *get_args(annotation)) for note in get_args(part)]


def test_a_setting_that_holds_a_text_says_whether_it_names_a_file() -> None:
    found = list(texts(Run, {Run}))
    marked = [
        (name, any(isinstance(note, AfterValidator) for note in [*notes, *said(annotation)]))
        for name, annotation, notes in found
    ]
    unsaid = {name for name, said_so in marked if not said_so}
    assert unsaid <= PLAIN_TEXTS
    assert {"folder", "train", "path", "runs", "backbone", "checkpoint"} <= {
        name for name, _, _ in found
    } - unsaid


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("talks.jsonl", "/data/talks.jsonl", True),
        ("/data/talks.jsonl", "./talks.jsonl", True),
        ("../talks.jsonl", "/data/talks.jsonl", True),
        ("talks.jsonl", "/data/old-talks.jsonl", False),
        ("/data/talks.jsonl", "/mine/talks.jsonl", False),
        ("talks", "other", False),
        ("s3://bucket/talks.jsonl", "/bucket/talks.jsonl", False),
        ("mine.py:polite", "/data/mine.py:polite", True),
        ("mine.py:polite", "/data/mine.py:rude", False),
        (
            "/r/session_1/_ray_pkg_0a1b/data/talks.jsonl",
            "/r/session_2/_ray_pkg_77/data/talks.jsonl",
            True,
        ),
        (
            "/r/session_1/_ray_pkg_0a1b/data/talks.jsonl",
            "/r/session_2/_ray_pkg_77/talks.jsonl",
            False,
        ),
    ],
)
def test_an_older_configuration_may_name_the_same_place_in_another_way(
    one: str, other: str, same: bool
) -> None:
    assert same_place(one, other) == same
    assert same_place(other, one) == same
    before, now = (
        {"data": {"train": [one, "x"], "kind": "rows"}},
        {"data": {"train": [other, "x"], "kind": "rows"}},
    )
    assert named_alike(before, now) == (now if same else before)


def test_a_data_file_is_the_same_to_the_reader_as_to_the_configuration(folder: Path) -> None:
    (folder / "kept" / "talks.jsonl").write_text(
        '{"query": "q", "answer": "a", "interactions": [{"query": "q", "answer": "a"}]}\n'
    )
    run = load_run(["run.yaml"], ["data.train=[kept/talks.jsonl]"])
    data: Any = run.data
    assert load_rows(data.train[0]) == load_rows("kept/talks.jsonl")
