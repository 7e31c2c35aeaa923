"""MRL in an environment of the user's own: the shipped game, small, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.config.loader import load_run
from common.telemetry.jsonl import read_rows
from tests.local_source import comparable_rows, run_here, tiny_run

ROOT = Path(__file__).resolve().parents[2]
GAME: dict[str, dict[str, Any]] = {
    "data": {"kind": "rows", "train": [str(ROOT / "configs" / "game.jsonl")], "eval": []},
    "environment": {
        "kind": "custom",
        "path": "rollout.environments.guess_number:GuessNumber",
        "arguments": {"highest": 3},
    },
    "rewards": {
        "cumulative": {
            **dict.fromkeys(("bleu", "cosine", "length", "recall")),
            "environment": {"weight": 1.0},
        }
    },
}
MRL = {
    "stage": "mrl",
    "episodes": 8,
    "curriculum": [{"name": "game", "iterations": 2, "max_steps": 2, "reset_probability": 0.5}],
}


def test_a_game_is_trained_on_and_pays_by_its_own_rewards(tmp_path: Path) -> None:
    directory, [source] = run_here(tiny_run(tmp_path, MRL, **GAME))
    rows = read_rows(directory)
    assert len(rows) == 2
    for row in rows:
        paid = [
            value
            for key, value in row.items()
            if key.startswith("reward/component{component=environment")
        ]
        assert paid == [row["objective/scores"]]
        assert row["rollout/episode_turns"] <= 2
    assert source.carried > 0  # memories go on from game to game
    again, _ = run_here(tiny_run(tmp_path / "again", MRL, **GAME))
    assert comparable_rows(again) == comparable_rows(directory)


def test_the_shipped_game_is_a_valid_configuration() -> None:
    run = load_run([str(ROOT / "configs" / "game.yaml")], [])
    assert run.environment.kind == "custom"
