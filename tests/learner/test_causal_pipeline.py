"""Runs of a causal language model: in this process, and on a real local Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.run import Run
from common.failures import InputError
from common.storage.checkpoint import latest_checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from common.telemetry.progress import QuietProgress
from deploy.plan import plan_text
from deploy.tables import evaluation_tables
from learner.driver import train
from learner.evaluation.evaluate import evaluate_checkpoint
from learner.evaluation.prompts import win_figures
from learner.evaluation.replay import replay
from rollout.journal.reader import episode_heads
from tests.causal_runs import causal_run, judge
from tests.local_source import StoppingRecorder, comparable_rows, run_here


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["whole", "lora"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    run = causal_run(tmp_path, "whole", lora=lora)
    whole, _ = run_here(run)
    stopped = run.model_copy(update={"name": "stopped"})

    def stopping(run: Run, directory: RunDirectory, step: int) -> StoppingRecorder:
        recorder = StoppingRecorder(run, directory, step)
        recorder.stops_after = 3
        return recorder

    run_here(stopped, make_recorder=stopping)
    resumed, _ = run_here(stopped)
    assert comparable_rows(resumed) == comparable_rows(whole)
    first = next(row for row in read_rows(whole) if row["stage"] == "lm_rl")
    assert first["ppo/log_prob_max_difference"] <= 1e-4


SECTIONS: dict[str, dict[str, Any]] = {
    "ppo": {"credit": "token", "kl_in": "reward"},
    "a2c": {"credit": "token"},
    "reinforce": {"kl_in": "reward"},
    "rloo": {"samples": 2},
    "grpo": {"samples": 2, "kl_correction": True},
    "rejection": {"samples": 2, "keep": 1, "keep_of": "task", "learn_queries": True},
}


def test_the_judge_counts_wins_and_halves_of_what_is_alike() -> None:
    found = win_figures([1.0, 0.0, 0.5, None, 2.0], [0.0, 1.0, 0.5, 1.0, 1.0])
    assert (found["share"], found["alike"], found["left_out"]) == (2.5 / 4, 1, 1)
    assert found["score"] == pytest.approx(3.5 / 4)
    with pytest.raises(InputError, match="gave no answer a score"):
        win_figures([None], [1.0])


def test_a_judge_that_rewards_pay_by_is_refused(tmp_path: Path) -> None:
    settings = causal_run(tmp_path).model_dump()
    settings["rewards"]["cumulative"]["functions"] = [judge(tmp_path)]
    with pytest.raises(ValueError, match=r"evaluation\.judge names .*words, which rewards pay by"):
        Run.model_validate(settings)
    settings["evaluation"]["judge"] = {}
    with pytest.raises(ValueError, match="names no judge"):
        Run.model_validate(settings)


def test_every_algorithm_trains_one_after_the_other(tmp_path: Path) -> None:
    run = causal_run(tmp_path)
    stages = [
        {"stage": "lm_rl", "episodes": 6, "iterations": 1, "algorithm": name, name: section}
        for name, section in SECTIONS.items()
    ]
    (tmp_path / "reward.py").write_text(
        "def ending(turn):\n    return sum(turn.answer_ids) % 7 / 7\n"
    )
    settings = run.model_dump() | {"stages": stages}
    # A reward that differs from answer to answer, so that there is something to learn.
    reward = {"name": "ending", "path": f"{tmp_path / 'reward.py'}:ending", "weight": 1.0}
    settings["rewards"]["cumulative"]["functions"] = [reward]
    directory, _ = run_here(Run.model_validate(settings))
    rows = read_rows(directory)
    assert len(rows) == len(SECTIONS)
    for name, row in zip(SECTIONS, rows, strict=True):
        assert row[f"{name}/loss_policy"] is not None
        assert row["ppo/ratio_max_deviation_first"] <= 1e-3, name
        assert row["train/gradient_norm"] > 0, name


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_local")
def test_a_run_on_ray_trains_evaluates_replays_and_opens_in_transformers(tmp_path: Path) -> None:
    run = causal_run(tmp_path, lora={"rank": 4})
    summary = train(run, QuietProgress())
    assert [stage["name"] for stage in summary["stages"]] == ["lm_sft", "lm_rl"]
    directory = RunDirectory(run.runs, run.name)
    played = episode_heads(directory)
    assert played.num_rows == 18
    again = replay(directory.path(), played["id"][0].as_py())
    assert again.parted is None, str(again.parted)
    assert again.log_prob_max_difference <= 1e-5
    checkpoint = latest_checkpoint(directory)
    assert checkpoint is not None
    result = evaluate_checkpoint(directory.path())
    assert result["prompts"]["kl"] == pytest.approx(0.0, abs=0.1)
    assert 0 < result["prompts"]["distinct"]["1"] <= 1
    wins = result["prompts"]["wins"]
    assert 0 <= wins["low"] <= wins["share"] <= wins["high"] <= 1
    assert wins["prompts"] == 4
    tables = evaluation_tables(result)
    assert "Sampled answers to" in tables
    assert "wins against the reference, share" in tables
    assert tables.count("the reference →") == 4
    assert "adapters of rank 4" in plan_text(run)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint.where)
    ids = AutoTokenizer.from_pretrained(checkpoint.where)("the film")["input_ids"]
    assert torch.isfinite(model(torch.tensor([ids])).logits).all()
