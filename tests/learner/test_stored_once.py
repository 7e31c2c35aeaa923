"""Checkpoints of a run: its reference is stored once, the state of optimisers in the newest one,
and a run that goes on from them is the run that nobody stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.config.run import Run
from common.storage.checkpoint import Checkpoint, open_checkpoint, whole_checkpoints
from common.storage.run_directory import RunDirectory
from learner.checkpointing import OPTIMIZER, TRAINING, tensors_beside
from learner.evaluation.curriculum import QUALITY, HeldOutCurriculum
from learner.evaluation.prompts import reference_of
from learner.policies.table import open_policy
from learner.recorder import Recorder
from learner.setup import newest
from tests.learner.test_causal_pipeline import causal_run
from tests.local_source import (
    STAGES,
    StoppingRecorder,
    comparable_rows,
    processes,
    run_and_die,
    run_here,
    tiny_run,
)

KEPT = {"checkpoint_every": 1, "log_every": 1, "keep_checkpoints": 9}
BYTES = 4
HEADER = 40_000
"""More than safetensors writes of names and shapes."""


def mrl_run(folder: Path, name: str = "tiny") -> Run:
    """With a KL to the reference in the loss, a critic, and memories that are carried over."""
    mrl = STAGES["mrl"] | {"ppo": STAGES["mrl"]["ppo"] | {"kl": 0.2}}
    return tiny_run(folder, "sft", mrl, name=name, learner=KEPT)


def causal_settings(folder: Path, **causal: Any) -> dict[str, Any]:
    """Of a run whose reward differs from answer to answer, so that there is something to learn."""
    code = "def ending(turn):\n    return sum(turn.answer_ids) % 7 / 7\n"
    (folder / "reward.py").write_text(code)
    settings = causal_run(folder, **causal).model_dump()
    reward = {"name": "ending", "path": f"{folder / 'reward.py'}:ending", "weight": 1.0}
    settings["rewards"]["cumulative"]["functions"] = [reward]
    return settings


def sizes(checkpoint: Checkpoint) -> dict[str, int]:
    with checkpoint.folder() as folder:
        return {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}


def frozen_files(directory: RunDirectory) -> list[Path]:
    assert directory.local is not None
    return sorted((directory.local / "checkpoints" / "frozen").glob("*"))


def stopped_after(step: int, run: Run) -> RunDirectory:
    def stopping(run: Run, directory: RunDirectory, first: int) -> Recorder:
        recorder = StoppingRecorder(run, directory, first)
        recorder.stops_after = step
        return recorder

    return run_here(run, make_recorder=stopping)[0]


def killed_after(step: int, run: Run) -> RunDirectory:
    process = processes().Process(target=run_and_die, args=(run.model_dump(), step))
    process.start()
    process.join(timeout=150)
    assert process.exitcode == -9
    return RunDirectory(run.runs, run.name)


def assert_same(one: RunDirectory, other: RunDirectory) -> None:
    assert comparable_rows(one) == comparable_rows(other)
    states = []
    for last in (newest(one), newest(other)):
        with last.folder() as folder:
            moments = load_file(folder / OPTIMIZER)
            states.append(load_file(folder / "model.safetensors") | tensors_beside(last) | moments)
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


@pytest.fixture(scope="module")
def mrl(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_here(mrl_run(tmp_path_factory.mktemp("mrl")))[0]


def test_checkpoints_of_mrl_hold_no_reference_and_the_newest_alone_holds_moments(
    mrl: RunDirectory,
) -> None:
    last, *older = whole_checkpoints(mrl)
    assert [each.step for each in (last, *older)] == [12, 11, 10, 9, 8, 7, 6, 5, 4]
    (frozen,) = frozen_files(mrl)
    model = sizes(last)["model.safetensors"]
    assert abs(frozen.stat().st_size - model) < HEADER
    with last.folder() as folder:
        critic = sum(value.numel() for value in load_file(folder / TRAINING).values())
    assert abs(sizes(last)[TRAINING] - BYTES * critic) < HEADER
    assert abs(sizes(last)[OPTIMIZER] - 2 * (model + BYTES * critic)) < 2 * HEADER
    assert not any(OPTIMIZER in sizes(each) for each in older)
    for each in older[:5]:
        assert sizes(each) | {OPTIMIZER: sizes(last)[OPTIMIZER]} == sizes(last)
    # The reference is the policy that the stage began with.
    begun = next(each for each in older if each.step == 6)
    with begun.folder() as folder:
        weights = load_file(folder / "model.safetensors")
    held = tensors_beside(last)
    assert all(torch.equal(held[f"reference/{name}"], value) for name, value in weights.items())


def test_a_run_that_was_moved_after_a_kill_goes_on_as_if_nothing_had_been(
    mrl: RunDirectory, tmp_path: Path
) -> None:
    before = killed_after(10, mrl_run(tmp_path / "here"))
    assert newest(before).step == 9
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert_same(run_here(mrl_run(tmp_path / "there"))[0], mrl)


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["whole", "lora"])
def test_a_killed_run_of_a_causal_model_goes_on_exactly(
    tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    settings = causal_settings(tmp_path, lora=lora)
    settings["stages"][1]["ppo"] = {"kl": 0.2}
    run = Run.model_validate(settings)
    straight, _ = run_here(run)
    assert comparable_rows(straight)[-1]["objective/kl"] != 0
    other = run.model_copy(update={"name": "killed"})
    killed_after(4, other)
    assert_same(run_here(other)[0], straight)
    last, *older = [each for each in whole_checkpoints(straight) if each.step > 2]
    assert {each.frozen for each in (last, *older)} == {last.frozen}
    assert last.frozen is not None
    with last.frozen_file() as file:
        assert file is not None
        held = load_file(file)
    assert held.keys() <= tensors_beside(last).keys()
    assert not any(".lora_" in name for name in held)
    with last.folder() as folder:
        names = load_file(folder / TRAINING).keys()
    assert {name.split("/")[0] for name in names} == (
        {"critic"} | ({"with_adapters"} if lora else set())
    )
    assert all(".lora_" in name for name in names if not name.startswith("critic/"))


def test_the_reference_of_an_evaluation_is_the_one_in_the_run(tmp_path: Path) -> None:
    run = causal_run(tmp_path)
    directory, _ = run_here(run)
    first = open_checkpoint(directory.path("checkpoints/step_00000002"))
    last = newest(directory)
    reference = reference_of(last, open_policy(last), run)
    assert reference is not None
    held = reference.module.state_dict()
    for name, value in open_policy(first).module.state_dict().items():
        assert torch.equal(held[name], value), name


def test_a_run_whose_newest_checkpoint_was_deleted_goes_on_and_says_that_moments_are_new(
    mrl: RunDirectory, tmp_path: Path
) -> None:
    run = mrl_run(tmp_path)
    directory = stopped_after(9, run)
    directory.remove("checkpoints/step_00000009")
    assert newest(directory).step == 8
    notes: list[str] = []

    class Listening(Recorder):
        def note(self, text: str) -> None:
            notes.append(text)
            super().note(text)

    run_here(run, make_recorder=Listening)
    (told,) = [each for each in notes if "moments" in each]
    assert "warning: mrl goes on from step_00000008, which has no state of its optimisers" in told
    rows, expected = comparable_rows(directory), comparable_rows(mrl)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    assert rows[:8] == expected[:8]
    assert rows[9] != expected[9]
    # With the newest one there nothing is told.
    notes.clear()
    other = mrl_run(tmp_path, "other")
    stopped_after(9, other)
    run_here(other, make_recorder=Listening)
    assert not any("moments" in each for each in notes)


def test_adapters_of_the_best_weights_are_taken_and_the_reference_stays(tmp_path: Path) -> None:
    rows = [
        {"query": "a dog", "answer": "good", "interactions": [{"query": text, "answer": "film"}]}
        for text in ("my dog", "my cat", "the story", "an actor", "a way", "the film")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = causal_settings(tmp_path, lora={"rank": 4})
    settings["data"] = {
        "kind": "rows",
        "train": [str(tmp_path / "rows.jsonl")],
        "eval": [str(tmp_path / "rows.jsonl")],
    }
    settings["environment"] = {"kind": "conversation"}
    settings["evaluation"] = {"episodes": 4}
    measured = {"evaluate_every": 1, "evaluate_conversations": 3}
    settings["stages"] = [
        {"stage": "lm_rl", "episodes": 6, "iterations": 3, **measured}
        | {"optimizer": {"learning_rate": 0.5}}
    ]

    class Second(HeldOutCurriculum):
        """Finds the weights after the second iteration to be the best."""

        def measure(self, *given: Any) -> dict[str, float]:
            self.calls = getattr(self, "calls", 0) + 1
            return super().measure(*given) | {QUALITY: float(self.calls == 3)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("learner.stages.rl.HeldOutCurriculum", Second)
        directory, _ = run_here(Run.model_validate(settings))
    last, best = newest(directory), open_checkpoint(directory.path("checkpoints/best"))
    assert (best.step, last.step, len(frozen_files(directory))) == (2, 3, 1)
    ours, theirs = (open_policy(each).module.state_dict() for each in (last, best))
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []
    held, of_best = tensors_beside(last), tensors_beside(best)
    adapters = [name for name in held if name.startswith("with_adapters/")]
    assert [name for name in adapters if not torch.equal(held[name], of_best[name])] == []
    assert any(".lora_B" in name and held[name].any() for name in adapters)
