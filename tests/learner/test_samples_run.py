"""A stage with several samples of each task, from dealing to weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.telemetry.jsonl import read_rows
from tests.local_source import run_here, tiny_run

STEPS = [{"name": "all", "iterations": 2, "max_steps": 2}]


@pytest.mark.parametrize(
    ("algorithm", "section"),
    [
        ("rloo", {"samples": 3, "kl_in": "reward"}),
        ("grpo", {"samples": 2, "compare": "episode"}),
        ("rejection", {"samples": 3, "keep_of": "task", "keep": 1, "learn_queries": True}),
        ("ppo", {"samples": 2, "mismatch": {"correct": "truncate"}, "no_end_penalty": 0.1}),
    ],
)
def test_a_stage_learns_from_samples_of_its_tasks(
    tmp_path: Path, algorithm: str, section: dict[str, Any]
) -> None:
    stage = {
        "stage": "mrl",
        "episodes": 6,
        "curriculum": STEPS,
        "algorithm": algorithm,
        algorithm: section,
    }
    directory, _ = run_here(tiny_run(tmp_path, stage, rollout={"backend": "torch"}))
    rows = [row for row in read_rows(directory) if f"{algorithm}/loss_policy" in row]
    assert len(rows) == 2
    for row in rows:
        # Recorded and recomputed log-probabilities are those of one set of weights.
        assert row["mismatch/log_prob_difference"] < 1e-4
    if algorithm == "ppo":
        assert rows[0]["mismatch/weight"] == pytest.approx(1.0, abs=1e-3)
    if algorithm in ("rloo", "grpo"):
        assert rows[0]["objective/tasks_incomplete"] == 0.0
