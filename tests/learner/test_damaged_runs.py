"""A run that lost something: it goes on from what is whole, or says what is not, and touches
nothing of what is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from common.config.run import Run
from common.data.conversations import load_rows, save_rows
from common.data.datasets.table import load_corpus
from common.failures import InputError
from common.storage.checkpoint import FOLDER
from common.storage.run_directory import RunDirectory
from common.telemetry.progress import QuietProgress
from learner.parallel.group import Job
from learner.resume import tell_of_changed_rewards
from learner.setup import newest, prepare
from learner.stages.supervised import build_objective
from learner.summary import Summary
from reward_service.reward_models.versions import weights_digest
from rollout.journal.journal import Journal
from tests.local_source import run_here, tiny_run

TALK = (
    '{"query": "My cat is %s", "answer": "okay", "interactions": [{"query": "and my cat?", '
    '"answer": "%s"}]}\n'
)
CATS = ("Mia", "Tom", "Leo", "Nala", "Coco", "Kitty")


class Notes(QuietProgress):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def run_on_files(folder: Path) -> Run:
    data = {"kind": "rows", "train": [f"{folder}/cats.jsonl"], "eval": [f"{folder}/cats.jsonl"]}
    return tiny_run(
        folder / "runs", "sft", data=data, learner={"checkpoint_every": 3, "log_every": 1}
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run of six steps on them, with checkpoints of steps 3 and 6, a
    summary and a journal."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "cats.jsonl").write_text("".join(TALK % (cat, cat) for cat in CATS))
    run = run_on_files(folder)
    directory, _ = run_here(run)
    Summary(run, directory).write("stopped")
    assert directory.local is not None
    journal = Journal(directory.local)
    journal.dealt(0, ["a", "b"])
    journal.failed(0, ["a"], "for a test")
    journal.dropped(0, ["b"], "for a test")
    journal.close()
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of it. Its data have moved with it, which changes nothing."""
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    return copy


def start_again(folder: Path) -> tuple[int, list[str]]:
    """The step that the same command goes on from, and what it says."""
    run, notes = run_on_files(folder), Notes()
    return prepare(
        run, RunDirectory(run.runs, run.name), load_corpus(run.data, run.seed), notes
    ).step, notes.told


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(folder: Path, match: str) -> None:
    before = files(folder)
    with pytest.raises(InputError, match=match):
        start_again(folder)
    assert files(folder) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty_files(path: Path) -> None:
    """A manifest without a list of files."""
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"files": [{"path": "model.safetensors"}]})
    )


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    (
        "model.safetensors",
        Path.unlink,
        r"step_00000006/model\.safetensors: is missing, though the manifest lists it with \d+ "
        r"bytes",
    ),
    (
        "training.safetensors",
        cut,
        r"training\.safetensors: is not the file that was saved: \d+ bytes here, \d+ in the "
        r"manifest",
    ),
    (
        "tokenizer.json",
        flip,
        r"tokenizer\.json: is not the file that was saved: hash \w+ here, \w+ in the manifest",
    ),
    ("manifest.json", Path.unlink, r"step_00000006/manifest\.json: is missing, or is not"),
    ("manifest.json", cut, r"manifest\.json: is missing, or is not"),
    ("manifest.json", empty_files, r"manifest\.json: is missing, or is not"),
]


@pytest.mark.parametrize(
    ("name", "damage", "what"),
    DAMAGE,
    ids=[f"{damage.__name__} {name}" for name, damage, _ in DAMAGE],
)
def test_without_a_whole_checkpoint_a_run_is_refused_and_with_an_older_one_goes_on(
    folder: Path, name: str, damage: Callable[[Path], None], what: str
) -> None:
    checkpoints = folder / "runs" / "tiny" / FOLDER
    damage(checkpoints / "step_00000006" / name)
    step, told = start_again(folder)
    assert step == 3
    assert any(
        note.startswith("damaged checkpoint ") and note.endswith("going on from step 3")
        for note in told
    )
    damage(checkpoints / "step_00000003" / name)
    refused(
        folder,
        rf"{what}.* \(and 1 more\); the run tiny has been trained and no checkpoint of it is "
        r"whole: put the files back",
    )


def test_a_run_whose_checkpoints_are_gone_is_refused(folder: Path) -> None:
    checkpoints = folder / "runs" / "tiny" / FOLDER
    shutil.rmtree(checkpoints / "step_00000006")
    assert start_again(folder)[0] == 3
    shutil.rmtree(checkpoints / "step_00000003")
    (folder / "runs" / "tiny" / "metrics.jsonl").unlink()
    refused(folder, r"checkpoints: holds no checkpoint any more; the run tiny has been trained")
    shutil.rmtree(checkpoints)
    (folder / "runs" / "tiny" / "metrics.jsonl").write_text(
        '{"step": 1, "stage": "sft"}\n{"step": 2, "stage": "sft"}\n'
    )
    refused(folder, r"checkpoints: holds no checkpoint any more; the run tiny has been trained")


def test_what_latest_says_need_not_be_readable(folder: Path) -> None:
    (folder / "runs" / "tiny" / FOLDER / "latest").write_bytes(b"\xff\xfe\x00")
    assert start_again(folder)[0] == 6


def test_a_run_that_died_before_its_first_checkpoint_was_whole_is_set_up_again(
    tmp_path: Path,
) -> None:
    (tmp_path / "cats.jsonl").write_text("".join(TALK % (cat, cat) for cat in CATS))
    run = run_on_files(tmp_path)
    directory = RunDirectory(run.runs, run.name)
    prepare(run, directory, load_corpus(run.data, run.seed))
    (tmp_path / "runs" / "tiny" / FOLDER / "step_00000000" / "manifest.json").unlink()
    step, told = start_again(tmp_path)
    assert step == 0
    assert ["is set up anew" in note for note in told] == [True]
    assert start_again(tmp_path) == (0, [])


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        (
            "config.yaml",
            None,
            r"config\.yaml: is missing, so nothing says what the run in .* was started with; "
            r"put it back",
        ),
        ("config.yaml", b"stages: [", r"config\.yaml: broken YAML in line 1"),
        ("config.yaml", b"\xff\xfe", r"config\.yaml: cannot be read"),
        ("config.yaml", b"", r"config\.yaml"),
        (
            "metrics.jsonl",
            b'{"step": 1}\n{"ste\n{"step": 3}\n',
            r"metrics\.jsonl:2: is not JSON of a row",
        ),
        (
            "metrics.jsonl",
            b'{"step": 1}\n7\n{"step": 3}\n',
            r"metrics\.jsonl:2: is not JSON of a row",
        ),
        (
            "metrics.jsonl",
            b'{"step": 1}\n\xff\xff\n{"step": 3}\n',
            r"metrics\.jsonl:2: is not JSON of a row",
        ),
        ("summary.json", b'{"status": "run', r"summary\.json: is no summary of a run .* remove it"),
        ("summary.json", b"[]", r"summary\.json: is no summary of a run"),
        (
            "summary.json",
            b'{"wall_seconds": 1, "stages": {}, "retention": {}}',
            r"summary\.json: is no summary of a run .*stages",
        ),
        (
            "summary.json",
            b'{"wall_seconds": 1, "stages": [3], "retention": {}}',
            r"summary\.json: is no summary of a run",
        ),
        ("data.json", b'{"parts": [', r"data\.json: is damaged"),
        ("data.json", b'{"parts": [{"count": 6}]}', r"data\.json: is damaged"),
        ("values.json", b'{"Mia": 3', r"values\.json: is damaged .*; remove it"),
        ("values.json", b"[3]", r"values\.json: is damaged"),
        ("values.json", b"\xff", r"values\.json: is damaged"),
        (
            "episodes/_status.log",
            b"nothing that has a sum\nnor this\n",
            r"_status\.log: damaged at byte 0.*put it back, or move",
        ),
    ],
)
def test_other_damage_is_one_sentence(
    folder: Path, name: str, content: bytes | None, what: str
) -> None:
    path = folder / "runs" / "tiny" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    refused(folder, what)


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "environment.json"])
def test_without_a_file_that_only_tells_of_it_a_run_goes_on(folder: Path, name: str) -> None:
    (folder / "runs" / "tiny" / name).unlink()
    assert start_again(folder)[0] == 6


def test_the_values_of_the_training_data_are_written_where_they_are_missing(folder: Path) -> None:
    values = folder / "runs" / "tiny" / "values.json"
    before = values.read_bytes()
    values.unlink()
    assert start_again(folder)[0] == 6
    assert values.read_bytes() == before


def test_a_torn_last_line_is_no_damage(folder: Path) -> None:
    for name in ("metrics.jsonl", "episodes/_status.log"):
        with (folder / "runs" / "tiny" / name).open("ab") as file:
            file.write(b'{"step": 7, "tr')
    assert start_again(folder)[0] == 6


def test_other_data_under_the_same_name_are_refused_and_the_same_in_another_format_are_not(
    folder: Path,
) -> None:
    rows = load_rows(folder / "cats.jsonl")
    save_rows(rows[:4], folder / "cats.jsonl")
    refused(
        folder,
        r"^data\.train: .*cats\.jsonl has 4 conversations, the run was started with 6 in "
        r".*original.*cats\.jsonl; put the data",
    )
    save_rows(rows[::-1], folder / "cats.jsonl")
    refused(folder, r"^data\.train: .* in another order")
    save_rows(rows, folder / "cats.jsonl")
    assert start_again(folder)[0] == 6
    # A run of before there were fingerprints gets one, and keeps to it.
    (folder / "runs" / "tiny" / "data.json").unlink()
    config = folder / "runs" / "tiny" / "config.yaml"
    assert yaml.safe_load(config.read_text())["data"]["train"] == [f"{folder}/cats.jsonl"]
    assert start_again(folder)[0] == 6
    save_rows(rows[1:], folder / "cats.jsonl")
    refused(folder, "has 5 conversations, the run was started with 6;")


def test_data_that_change_while_a_run_is_going_are_noticed_by_the_ranks(folder: Path) -> None:
    start_again(folder)
    run = run_on_files(folder)
    directory = RunDirectory(run.runs, run.name)
    job = Job(run, directory, 0, "")
    build_objective(job, newest(directory), 3)
    save_rows(load_rows(folder / "cats.jsonl")[2:], folder / "cats.jsonl")
    with pytest.raises(
        InputError, match=r"data\.train: .* has 4 conversations, the run was started with 6"
    ):
        build_objective(job, newest(directory), 3)


def test_an_older_configuration_with_relative_paths_is_the_same_run(folder: Path) -> None:
    config = folder / "runs" / "tiny" / "config.yaml"
    older = yaml.safe_load(config.read_text())
    older |= {
        "runs": "runs",
        "data": older["data"] | {"train": ["cats.jsonl"], "eval": ["./cats.jsonl"]},
    }
    config.write_text(yaml.safe_dump(older))
    (folder / "runs" / "tiny" / "data.json").unlink()
    assert start_again(folder) == (6, [])
    older["data"]["train"] = ["dogs.jsonl"]
    config.write_text(yaml.safe_dump(older))
    (folder / "runs" / "tiny" / "data.json").unlink()
    refused(folder, r"data\.train: is .*cats\.jsonl.*dogs\.jsonl")


def test_a_reward_function_or_model_that_changed_is_told_of(original: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def polite(turn):\n    return 1.0\n")
    judge = original / "runs" / "tiny" / FOLDER / "step_00000003"
    other = original / "runs" / "tiny" / FOLDER / "step_00000006"
    (tmp_path / "judge").mkdir()
    shutil.copy(judge / "model.safetensors", tmp_path / "judge")
    mix = {
        "functions": [{"name": "polite", "path": f"{tmp_path}/mine.py:polite"}],
        "cosine": {"model": f"{tmp_path}/judge"},
    }
    run, notes = run_on_files(original), Notes()
    run = Run.model_validate(run.model_dump() | {"rewards": {"cumulative": mix}})
    directory = RunDirectory(str(tmp_path), "told")

    def start() -> list[str]:
        weights_digest.cache_clear()  # a new process has none
        notes.told.clear()
        tell_of_changed_rewards(run, directory, notes)
        return notes.told

    assert start() == start() == []
    (tmp_path / "mine.py").write_text("def polite(turn):\n    return 0.5\n")
    changed = (
        f"rewards.cumulative.polite: {tmp_path}/mine.py:polite holds something else than "
        "when the run last started"
    )
    assert [note.partition(";")[0] for note in start()] == [changed]
    assert start() == []
    shutil.copy(other / "model.safetensors", tmp_path / "judge")
    assert [note.partition(":")[0] for note in start()] == ["rewards.cumulative.cosine"]
    directory.write_text("reward_sources.json", "[")
    assert ["cannot be told" in note for note in start()] == [True]
    assert start() == []
