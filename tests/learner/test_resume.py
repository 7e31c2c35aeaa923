"""Invariants 3 and 4: same seed, same run, bit for bit; and a run that was killed goes on as if it
had not been."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.config.run import Run
from common.data.datasets.table import load_corpus
from common.failures import InputError
from common.storage.run_directory import RunDirectory
from learner.checkpointing import tensors_beside
from learner.evaluation.measure import reward_embedding
from learner.recorder import Recorder
from learner.setup import newest, prepare
from learner.training_state import TrainingState
from tests.local_source import (
    StoppingRecorder,
    comparable_rows,
    processes,
    run_and_die,
    run_here,
    tiny_run,
)

NORMALISED = {
    mix: {"length": {"normalise": True}, "bleu": {"normalise": True}}
    for mix in ("single", "cumulative", "long_term")
}
"""What a reward counts as depends on all iterations before."""
STAGES = ("sft", "memory_pretrain", "mrl")
"""Steps 1-6, 7-12 and 13-18 of the run. Checkpoints after every second step; from step 15 on,
memories are carried over."""


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that nobody disturbed."""
    directory, sources = run_here(
        tiny_run(tmp_path_factory.mktemp("straight"), *STAGES, rewards=NORMALISED)
    )
    assert sources[0].carried > 5
    assert sources[0].state().scorer.keys() == {"bleu", "length"}
    return directory


def final_tensors(directory: RunDirectory) -> dict[str, torch.Tensor]:
    """Weights, critic, reference and optimiser moments of the last checkpoint."""
    last = newest(directory)
    with last.folder() as folder:
        moments = load_file(folder / "optimizer.safetensors")
        return load_file(folder / "model.safetensors") | tensors_beside(last) | moments


def assert_same_run(one: RunDirectory, other: RunDirectory) -> None:
    rows, others = comparable_rows(one), comparable_rows(other)
    assert [row["step"] for row in others] == list(range(1, len(rows) + 1))
    for expected, row in zip(rows, others, strict=True):
        different: Mapping[str, Any] = {
            key: (expected[key], row.get(key)) for key in expected if expected[key] != row.get(key)
        }
        assert not different, f"step {row['step']}: {different}"
        assert expected == row
    expected_tensors, tensors = final_tensors(one), final_tensors(other)
    assert expected_tensors.keys() == tensors.keys()
    assert [
        name for name, tensor in tensors.items() if not torch.equal(tensor, expected_tensors[name])
    ] == []
    expected_state, state = (TrainingState.of(newest(run)) for run in (one, other))
    assert replace(state, metrics=None) == replace(expected_state, metrics=None)


def killed_after(run: Run, step: int) -> None:
    """Run in another process until `step` was recorded; there kill -9 meets it."""
    process = processes().Process(target=run_and_die, args=(run.model_dump(), step))
    process.start()
    process.join(timeout=150)
    assert process.exitcode == -signal.SIGKILL


def test_same_seed_gives_the_same_losses_and_weights_bit_for_bit(
    straight: RunDirectory, tmp_path: Path
) -> None:
    torch.manual_seed(1234)  # nothing may depend on what this process drew before
    again, _ = run_here(tiny_run(tmp_path, *STAGES, rewards=NORMALISED))
    assert_same_run(straight, again)


def test_other_seed_gives_other_losses(straight: RunDirectory, tmp_path: Path) -> None:
    other = tiny_run(tmp_path, "sft").model_copy(update={"seed": 6})
    directory, _ = run_here(other)
    assert (
        comparable_rows(directory)[1]["train/loss_lm"]
        != comparable_rows(straight)[1]["train/loss_lm"]
    )


def test_run_killed_again_and_again_is_the_undisturbed_run_bit_for_bit(
    straight: RunDirectory, tmp_path: Path
) -> None:
    """Killed within a supervised stage, in the first step of the next one, and twice in MRL, each
    time past the last checkpoint."""
    run = tiny_run(tmp_path, *STAGES, rewards=NORMALISED)
    for step, resumes_from in ((5, 4), (7, 6), (13, 12), (17, 16)):
        killed_after(run, step)
        directory = RunDirectory(run.runs, run.name)
        assert newest(directory).step == resumes_from
        assert comparable_rows(directory)[-1]["step"] == step
    resumed, _ = run_here(run)
    assert_same_run(straight, resumed)


def test_run_that_was_asked_to_stop_leaves_a_checkpoint_of_that_very_step(
    straight: RunDirectory, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path, *STAGES, rewards=NORMALISED)

    def stopping(run: Run, directory: RunDirectory, step: int) -> Recorder:
        recorder = StoppingRecorder(run, directory, step)
        recorder.stops_after = stops
        return recorder

    for stops in (3, 15):
        directory, _ = run_here(run, make_recorder=stopping)
        assert newest(directory).step == stops
    resumed, _ = run_here(run)
    assert_same_run(straight, resumed)


def test_cosine_rewards_of_a_resumed_run_compare_with_the_embedding_that_mrl_started_from(
    straight: RunDirectory,
) -> None:
    last = newest(straight)
    with last.folder() as folder:
        trained = load_file(folder / "model.safetensors")["embedding.weight"]
    reference = tensors_beside(last)["reference/embedding.weight"]
    embedding = torch.from_numpy(reward_embedding(last, stage=2))
    assert torch.equal(embedding, reference)
    assert not torch.equal(embedding, trained)
    assert torch.equal(torch.from_numpy(reward_embedding(last, stage=3)), trained)


def test_row_of_metrics_never_spans_a_checkpoint(tmp_path: Path) -> None:
    """Else the row after a resume would hold only the steps after the checkpoint, and differ from
    the undisturbed run's."""
    settings = {"checkpoint_every": 3, "log_every": 2}
    stage = {"stage": "memory_aware", "steps": 6, "batch_size": 4}
    plain, _ = run_here(tiny_run(tmp_path, stage, name="plain", learner=settings))
    assert [row["step"] for row in comparable_rows(plain)] == [2, 3, 4, 6]
    killed = tiny_run(tmp_path, stage, name="killed", learner=settings)
    killed_after(killed, 4)
    resumed, _ = run_here(killed)
    assert comparable_rows(resumed) == comparable_rows(plain)


def test_batch_that_leaves_a_rank_without_work_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    run = tiny_run(tmp_path, "sft", "mrl", learner={"ranks": 7})
    directory = RunDirectory(run.runs, run.name)
    with pytest.raises(
        InputError, match=r"stages\.sft\.batch_size: is 6, which leaves some of 7 learner ranks"
    ):
        prepare(run, directory, load_corpus(run.data, run.seed))
    assert not directory.exists("config.yaml")
