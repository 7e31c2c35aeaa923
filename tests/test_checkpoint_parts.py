"""Parts of checkpoints that are not in each of them: what only the newest one needs, and weights
that a stage never changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import common.storage.checkpoint
from common.failures import InputError
from common.storage.checkpoint import (
    Checkpoint,
    damage_after,
    latest_checkpoint,
    mark_best,
    open_checkpoint,
    save_checkpoint,
    whole_checkpoints,
)
from common.storage.frozen import FrozenFile, write_frozen
from common.storage.run_directory import RunDirectory

MODEL, MOMENTS = "model.safetensors", "optimizer.safetensors"


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    root = f"memory://{tmp_path.name}" if request.param == "memory" else str(tmp_path / "runs")
    return RunDirectory(root, "first")


class Killed(Exception):
    """Stands for kill -9: nothing that would tidy up runs after it."""


def parts(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / MODEL).write_text(text)
        (folder / MOMENTS).write_text(f"moments of {text}")

    return write


def save(run: RunDirectory, step: int, keep: int = 9, frozen: FrozenFile | None = None) -> None:
    save_checkpoint(run, step, parts(str(step)), {}, keep, {MOMENTS}, frozen)


def frozen_in(run: RunDirectory, text: str) -> FrozenFile:
    def write(path: Path) -> None:
        path.write_text(text)

    return write_frozen(run, "mrl", write)


def with_moments(run: RunDirectory) -> list[str]:
    names = [each for each in run.names("checkpoints") if each.startswith("step_")]
    return [name for name in names if MOMENTS in run.names(f"checkpoints/{name}")]


def found(run: RunDirectory) -> Checkpoint:
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    return checkpoint


def read(checkpoint: Checkpoint) -> str | None:
    with checkpoint.frozen_file() as file:
        return None if file is None else file.read_text()


def test_only_the_newest_checkpoint_has_what_only_the_newest_needs(run: RunDirectory) -> None:
    for step in (10, 20, 30):
        save(run, step, keep=2)
        mark_best(run, "step_00000010")
        assert with_moments(run) == [f"step_000000{step}"]
    assert [each.step for each in whole_checkpoints(run)] == [30, 20, 10]
    with open_checkpoint(run.path("checkpoints/best")).folder() as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", MODEL]


def test_what_only_the_newest_needs_is_damage_where_it_was_changed(run: RunDirectory) -> None:
    save(run, 10)
    save(run, 20)
    run.write_text(f"checkpoints/step_00000020/{MOMENTS}", "moments of 21")
    assert found(run).step == 10
    (damage,) = damage_after(run, found(run))
    assert f"step_00000020/{MOMENTS}" in str(damage)


def test_kill_before_latest_names_the_newer_leaves_the_older_as_it_was(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 10)
    write = RunDirectory.write_text

    def killed(self: RunDirectory, relative: str, text: str) -> None:
        if relative.endswith("latest"):
            raise Killed
        write(self, relative, text)

    monkeypatch.setattr(RunDirectory, "write_text", killed)
    with pytest.raises(Killed):
        save(run, 20)
    monkeypatch.undo()
    assert found(run).step == 10
    assert with_moments(run) == ["step_00000010", "step_00000020"]
    save(run, 12)
    assert with_moments(run) == ["step_00000012"]


def test_kill_before_older_ones_are_pruned_leaves_a_newest_one_with_everything(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 10, frozen=frozen_in(run, "of stage 1"))

    def killed(*given: object) -> None:
        raise Killed

    monkeypatch.setattr(common.storage.checkpoint, "_prune", killed)
    second = frozen_in(run, "of stage 2")
    with pytest.raises(Killed):
        save(run, 20, frozen=second)
    monkeypatch.undo()
    assert (found(run).step, read(found(run))) == (20, "of stage 2")
    assert "step_00000020" in with_moments(run)
    save(run, 30, frozen=second)
    assert with_moments(run) == ["step_00000030"]
    assert [read(each) for each in whole_checkpoints(run)] == [
        "of stage 2", "of stage 2", "of stage 1"
    ]  # fmt: skip


def test_frozen_weights_stay_as_long_as_a_checkpoint_names_them(run: RunDirectory) -> None:
    frozen = frozen_in(run, "reference")
    for step in (10, 20, 30):
        save(run, step, keep=2, frozen=frozen)
    assert run.names("checkpoints/frozen") == [frozen.path.rpartition("/")[2]]
    assert read(found(run)) == "reference"
    save(run, 40, keep=2)
    assert [read(each) for each in whole_checkpoints(run)] == [None, "reference"]
    save(run, 50, keep=2)
    assert run.names("checkpoints/frozen") == []


def test_frozen_weights_of_another_content_are_another_file(run: RunDirectory) -> None:
    one = frozen_in(run, "one")
    assert frozen_in(run, "one") == one
    save(run, 10, frozen=one)
    other = frozen_in(run, "two")
    save(run, 20, frozen=other)
    assert [read(each) for each in whole_checkpoints(run)] == ["two", "one"]
    assert one.is_in(run)
    run.remove(f"checkpoints/{one.path}")
    assert not one.is_in(run)


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_damaged_frozen_weights_stop_a_resume_and_not_whoever_opens_the_model(
    run: RunDirectory, damage: str
) -> None:
    save(run, 5)
    frozen = frozen_in(run, "reference")
    for step in (10, 20):
        save(run, step, frozen=frozen)
    where = f"checkpoints/{frozen.path}"
    if damage == "gone":
        run.remove(where)
    else:
        run.write_text(where, "Reference" if damage == "changed" else "refer")
    assert found(run).step == 5
    assert all(frozen.path in str(each) for each in damage_after(run, found(run)))
    opened = open_checkpoint(run.path())
    assert opened.step == 20
    with pytest.raises(InputError, match=f"{frozen.path}: is (missing|not the file)"):
        read(opened)


def test_a_copied_run_finds_its_frozen_weights_and_a_copied_checkpoint_opens(
    tmp_path: Path,
) -> None:
    run = RunDirectory(str(tmp_path / "runs"), "first")
    save(run, 10, frozen=frozen_in(run, "reference"))
    assert run.local is not None
    shutil.move(run.local, tmp_path / "moved")
    moved = open_checkpoint(str(tmp_path / "moved"))
    assert read(moved) == "reference"
    shutil.copytree(moved.where, tmp_path / "alone")
    alone = open_checkpoint(str(tmp_path / "alone"))
    with alone.folder() as folder:
        assert (folder / MODEL).read_text() == "10"
    with pytest.raises(InputError, match="copy the run's folder checkpoints/frozen beside"):
        read(alone)
    shutil.copytree(tmp_path / "moved" / "checkpoints" / "frozen", tmp_path / "frozen")
    assert read(alone) == "reference"


def test_a_killed_write_of_frozen_weights_leaves_no_litter(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path / "runs"), "first")

    def half(path: Path) -> None:
        path.write_text("half")
        raise Killed

    with pytest.raises(Killed):
        write_frozen(run, "mrl", half)
    frozen = frozen_in(run, "reference")
    assert run.names("checkpoints/frozen") == [frozen.path.rpartition("/")[2]]
    save(run, 10)
    assert run.names("checkpoints/frozen") == []
