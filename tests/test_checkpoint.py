"""Checkpoints: whole or not there, whatever happens while one is written."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.failures import InputError
from common.storage.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    open_checkpoint,
    save_checkpoint,
)
from common.storage.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    return RunDirectory(
        f"memory://{tmp_path.name}" if request.param == "memory" else str(tmp_path / "runs"),
        "first",
    )


@pytest.fixture
def local(tmp_path: Path) -> RunDirectory:
    return RunDirectory(str(tmp_path / "runs"), "first")


def model(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "nested").mkdir()
        (folder / "model.safetensors").write_text(text)
        (folder / "nested" / "rank-0.json").write_text("{}")

    return write


def found(run: RunDirectory) -> Checkpoint:
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    return checkpoint


def test_what_was_saved_comes_back(run: RunDirectory) -> None:
    assert latest_checkpoint(run) is None
    where = save_checkpoint(run, 40, model("forty"), {"stage": 2, "position": [3, 17]})
    assert where == run.path("checkpoints/step_00000040")
    checkpoint = found(run)
    assert (checkpoint.step, checkpoint.state) == (40, {"stage": 2, "position": [3, 17]})
    with checkpoint.folder() as folder:
        assert (folder / "model.safetensors").read_text() == "forty"
        assert (folder / "nested" / "rank-0.json").read_text() == "{}"
        assert (folder / "manifest.json").exists()
    assert run.read_text("checkpoints/latest") == "step_00000040\n"


def test_the_last_n_stay(run: RunDirectory) -> None:
    for step in (10, 20, 30, 40):
        save_checkpoint(run, step, model(str(step)), {}, keep=2)
    assert run.names("checkpoints") == ["latest", "step_00000030", "step_00000040"]


def test_a_checkpoint_of_the_same_step_is_replaced(run: RunDirectory) -> None:
    save_checkpoint(run, 10, model("before"), {})

    def write_another(folder: Path) -> None:
        (folder / "other").write_text("after")

    save_checkpoint(run, 10, write_another, {})
    with found(run).folder() as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "other"]
    assert run.names("checkpoints/step_00000010") == ["manifest.json", "other"]
    assert run.names("checkpoints") == ["latest", "step_00000010"]


def test_the_checkpoint_that_latest_names_comes_first(run: RunDirectory) -> None:
    save_checkpoint(run, 10, model("ten"), {})
    save_checkpoint(run, 20, model("twenty"), {})
    run.write_text("checkpoints/latest", "step_00000010\n")
    assert found(run).step == 10


def test_a_run_that_went_back_does_not_resume_from_its_abandoned_future(run: RunDirectory) -> None:
    for step in (40, 60, 50):
        save_checkpoint(run, step, model(str(step)), {}, keep=3)
    run.remove("checkpoints/latest")
    assert found(run).step == 50


@pytest.mark.parametrize(
    "damage",
    ["cut manifest", "no manifest", "no file", "changed byte", "no folder", "foreign manifest"],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_newest_whole_one(
    run: RunDirectory, damage: str
) -> None:
    save_checkpoint(run, 10, model("ten"), {})
    save_checkpoint(run, 20, model("twenty"), {})
    broken = "checkpoints/step_00000020"
    if damage == "cut manifest":
        run.write_text(f"{broken}/manifest.json", run.read_text(f"{broken}/manifest.json")[:-20])
    elif damage == "no manifest":
        run.remove(f"{broken}/manifest.json")
    elif damage == "no file":
        run.remove(f"{broken}/nested/rank-0.json")
    elif damage == "changed byte":
        run.write_text(f"{broken}/model.safetensors", "twentY")
    elif damage == "no folder":
        run.remove(broken)
    else:
        run.write_text(f"{broken}/manifest.json", "[]")
    assert found(run).step == 10
    save_checkpoint(run, 20, model("again"), {})
    assert found(run).step == 20


def test_a_lost_latest_file_falls_back_to_the_newest(run: RunDirectory) -> None:
    save_checkpoint(run, 10, model("ten"), {})
    save_checkpoint(run, 20, model("twenty"), {})
    run.write_text("checkpoints/latest", "step_00000099\n")
    assert found(run).step == 20


def test_a_failing_writer_leaves_the_older_checkpoint_and_no_litter(run: RunDirectory) -> None:
    save_checkpoint(run, 10, model("ten"), {})

    def fail(folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_checkpoint(run, 20, fail, {})
    assert found(run).step == 10
    assert run.names("checkpoints") == ["latest", "step_00000010"]


def test_state_that_is_no_json_is_refused_before_anything_is_written(local: RunDirectory) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(
            local, 10, lambda _: pytest.fail("must not write"), {"tensor": torch.zeros(1)}
        )


def test_kill_minus_nine_while_writing_leaves_the_older_checkpoint(local: RunDirectory) -> None:
    save_checkpoint(local, 10, model("ten"), {"position": 1})
    script = textwrap.dedent(f"""
        import os, signal
        from common.storage.checkpoint import save_checkpoint
        from common.storage.run_directory import RunDirectory
        def write(folder):
            (folder / "model.safetensors").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        save_checkpoint(RunDirectory({local.root!r}, "first"), 20, write, {{}})
    """)
    assert (
        subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, check=False, timeout=120
        ).returncode
        == -signal.SIGKILL
    )
    assert ".unfinished-step_00000020" in local.names("checkpoints")
    assert found(local).step == 10
    save_checkpoint(local, 20, model("twenty"), {})
    assert local.names("checkpoints") == ["latest", "step_00000010", "step_00000020"]


def test_a_user_may_name_a_checkpoint_or_its_run(run: RunDirectory) -> None:
    where = save_checkpoint(run, 10, model("ten"), {})
    save_checkpoint(run, 20, model("twenty"), {})
    assert open_checkpoint(where).step == 10
    assert open_checkpoint(where + "/").step == 10
    assert open_checkpoint(run.path()).step == 20


def test_a_path_that_is_no_checkpoint_is_named(local: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no-checkpoint: does not exist"):
        open_checkpoint(str(tmp_path / "no-checkpoint"))
    with pytest.raises(InputError, match=r"is not a checkpoint: it has no readable manifest\.json"):
        open_checkpoint(str(tmp_path))
    where = save_checkpoint(local, 10, model("ten"), {})
    local.write_text("checkpoints/step_00000010/model.safetensors", "tem")
    with pytest.raises(
        InputError, match=r"step_00000010/model\.safetensors: is not the file that was saved"
    ):
        open_checkpoint(where)
