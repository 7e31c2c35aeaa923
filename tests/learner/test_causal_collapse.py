"""Real runs on prompts without references, of which some are paid for one word again and again or
for saying nothing: the first kind of run raises no alarm, the others do, with an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.config.run import Run
from common.storage.run_directory import RunDirectory
from common.telemetry.jsonl import read_rows
from learner.recorder import Recorder
from tests.causal_runs import causal_run
from tests.local_source import run_here

ITERATIONS = 13
PAID = {
    "letters": "len(set(turn.answer)) / 20",
    "again": "1 - len(set(turn.answer_ids)) / len(turn.answer_ids)",
    "nothing": "1 / len(turn.answer_ids)",
}
"""Rewards, as expressions of a turn."""


def paid_run(folder: Path, reward: str, kl: float) -> Run:
    settings = causal_run(folder, reward, interactions=0).model_dump()
    code = f"def pay(turn):\n    return {PAID[reward]}\n"
    (folder / "reward.py").write_text(code)
    stage: dict[str, Any] = {
        "stage": "lm_rl",
        "episodes": 32,
        "iterations": ITERATIONS,
        "algorithm": "reinforce",
        "reinforce": {"kl": kl, "whiten": True},
        "optimizer": {"learning_rate": 1e-2, "warmup_fraction": 0.0, "final_fraction": 1.0},
    }
    settings["rewards"]["cumulative"] |= {
        "repetition": None,
        "functions": [{"name": "pay", "path": f"{folder / 'reward.py'}:pay", "weight": 1.0}],
    }
    settings["rollout"] |= {"slots": 32, "sampling": {"max_new_tokens": 8}}
    settings["evaluation"] = {"episodes": 1}
    settings["learner"]["checkpoint_every"] = ITERATIONS
    return Run.model_validate(settings | {"stages": [stage]})


@pytest.mark.parametrize(
    ("reward", "kl", "kind", "figure"),
    [
        ("letters", 0.5, None, "hacking/open_repeated"),
        ("again", 0.0, "repeats", "hacking/open_repeated"),
        ("nothing", 0.0, "short", "hacking/open_empty"),
    ],
)
def test_a_collapse_raises_the_alarm_of_its_kind(
    tmp_path: Path, reward: str, kl: float, kind: str | None, figure: str
) -> None:
    made: list[Recorder] = []

    def recording(run: Run, directory: RunDirectory, step: int) -> Recorder:
        made.append(Recorder(run, directory, step))
        return made[0]

    directory, _ = run_here(paid_run(tmp_path, reward, kl), make_recorder=recording)
    notes = [note for note in made[0].report().notes if "hacking alarm" in note]
    rows = read_rows(directory)
    assert len(rows) == ITERATIONS
    if kind is None:
        assert notes == []
        return
    assert rows[-1][figure] > rows[0][figure] + 0.3
    (told,) = (note for note in notes if f"hacking alarm: {kind}" in note)
    assert "when the stage began; such as asked" in told
    assert rows[-1][f"hacking/alarms{{kind={kind}}}"] >= 1
