"""Runs of a causal language model are killed by -9, a learner rank and a rollout worker on Ray, and
the driver in this process: they go on, their books add up, and they resume exactly."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from common.config.run import Run
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from common.telemetry.progress import QuietProgress
from learner.driver import train
from learner.setup import newest
from rollout.journal.journal import Journal, outcomes
from tests.causal_runs import causal_run
from tests.killing import Killer
from tests.local_source import comparable_rows, processes, run_and_die, run_here

EPISODES, ITERATIONS = 6, 8
VICTIMS = {3: "ray::RayTrainWorker", 6: "ray::RolloutWorker"}
"""Checkpoints stand at 2, 4, 6, …: what the rank made of step 3 is lost."""
LEARNT = ("objective/scores", "ppo/loss_policy", "critic/loss", "train/gradient_norm")


def chaos_run(folder: Path, name: str) -> Run:
    """Paid by a figure that differs from answer to answer, so that there is something to learn."""
    settings = causal_run(folder, name).model_dump()
    (folder / "ending.py").write_text(
        "def ending(turn):\n    return sum(turn.answer_ids) % 7 / 7\n"
    )
    reward = {"name": "ending", "path": f"{folder / 'ending.py'}:ending", "weight": 1.0}
    settings["rewards"]["cumulative"] |= {"functions": [reward], "repetition": None}
    settings["learner"] |= {"checkpoint_every": 2, "batch_deadline": 200}
    settings["rollout"] |= {"deadline": 100, "backend": "transformers"}
    settings["evaluation"] = {"episodes": 2}
    stage: dict[str, Any] = {
        "stage": "lm_rl",
        "episodes": EPISODES,
        "iterations": ITERATIONS,
        "optimizer": {"learning_rate": 1e-3},
        "ppo": {"credit": "token", "kl_in": "reward", "kl_target": 0.5, "kl_horizon": 50},
    }
    return Run.model_validate(settings | {"stages": [stage]})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunDirectory]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, run_here(chaos_run(folder, "undisturbed"))[0]


def tensors(directory: RunDirectory) -> dict[str, torch.Tensor]:
    """Weights, head, reference and optimiser moments of the last checkpoint."""
    with newest(directory).folder() as folder:
        return load_file(folder / "model.safetensors") | load_file(folder / "training.safetensors")


def test_a_killed_driver_goes_on_as_if_it_had_not_been(
    undisturbed: tuple[Path, RunDirectory],
) -> None:
    folder, whole = undisturbed
    run = chaos_run(folder, "killed")
    directory = RunDirectory(run.runs, run.name)
    process = processes().Process(target=run_and_die, args=(run.model_dump(), 5))
    process.start()
    process.join(timeout=150)
    assert process.exitcode == -signal.SIGKILL
    assert newest(directory).step == 4
    run_here(run)
    assert comparable_rows(directory) == comparable_rows(whole)
    expected, found = tensors(whole), tensors(directory)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.usefixtures("ray_local")
@pytest.mark.timeout(300)
def test_a_run_goes_on_when_rank_and_rollout_worker_are_killed_and_its_books_add_up(
    undisturbed: tuple[Path, RunDirectory],
) -> None:
    folder, whole = undisturbed
    run = chaos_run(folder, "chaos")
    directory = RunDirectory(run.runs, run.name)
    killer = Killer(directory, VICTIMS)
    killer.start()
    try:
        summary = train(run, QuietProgress())
    finally:
        killer.over.set()
        killer.join()
    assert killer.killed == VICTIMS
    assert summary["status"] == "done"
    rows = read_rows(directory)
    assert [row["step"] for row in rows] == list(range(1, ITERATIONS + 1))

    ended = outcomes(Path(directory.path())).to_pylist()
    trained = [row for row in ended if row["status"] == "trained"]
    assert {row["status"] for row in ended} <= {"trained", "dropped"}
    once = {(row["iteration"], row["task"]) for row in trained}
    assert len(trained) == len(once) == ITERATIONS * EPISODES
    dropped = {row["reason"] for row in ended if row["status"] == "dropped"}
    assert any(reason.startswith("rolled back to step 2") for reason in dropped), dropped
    counts = Journal(Path(directory.path())).counts
    counts.check()
    assert (counts.dealt, counts.trained, counts.in_flight) == (len(ended), len(trained), 0)

    for expected, row in zip(read_rows(whole), rows, strict=True):
        for name in LEARNT:
            # What another worker plays in other groups may differ by rounding.
            near = 0.0 if row["step"] <= max(VICTIMS) else 1e-4
            assert row[name] == pytest.approx(expected[name], rel=0, abs=near), (row["step"], name)
