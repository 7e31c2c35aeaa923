"""`engram replay RUN`: what can be replayed, and why nothing can."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from common.episode import Episode, Turn
from common.storage.checkpoint import save_checkpoint
from common.storage.run_directory import RunDirectory
from deploy.cli import run_command
from deploy.tables import replayable_text
from learner.evaluation.replayable import replayable
from rollout.journal.journal import Journal
from tests.local_source import tiny_run


def episode(version: int, index: int, reward: float | None = 0.25) -> Episode:
    answered = Turn([1], [2, 3], [-0.5, -0.25], [4], reward=reward)
    return Episode(
        f"{version}-{index}@{version}",
        f"{version}-{index}",
        3,
        (Turn([1], [], [], [4]), answered, answered),
        version,
        step="short",
        status="scored" if reward is not None else "failed",
        iteration=version,
        batch_index=index,
    )


def write_model(text: str, folder: Path) -> None:
    (folder / "model.safetensors").write_text(text)


def recorded(tmp_path: Path, *kept: int) -> str:
    """A run of three iterations of 30 episodes, the last of each failed, with checkpoints of some
    steps."""
    run = tiny_run(tmp_path, "mrl")
    directory = RunDirectory(run.runs, run.name)
    directory.write_config(run)
    for step in kept:
        save_checkpoint(directory, step, partial(write_model, str(step)), {}, keep=9)
    assert directory.local is not None
    journal = Journal(directory.local)
    for version in range(3):
        journal.dealt(version, [f"{version}-{index}" for index in range(30)])
        played = [episode(version, index, None if index == 29 else 0.25) for index in range(30)]
        journal.arrived(version, played)
        journal.trained(version, version + 1)
    journal.close()
    return directory.path()


def test_episodes_of_kept_checkpoints_are_listed_the_most_recent_first(tmp_path: Path) -> None:
    where = recorded(tmp_path, 0, 2, 3)
    found = replayable(where)
    assert (found.recorded, found.replayable, found.kept_steps) == (90, 58, [0, 2, 3])
    assert [line.episode for line in found.episodes] == [f"2-{index}@2" for index in range(20)]
    first = found.episodes[0]
    assert (first.step, first.iteration, first.weights_version) == ("short", 2, 2)
    assert (first.answers, first.reward) == (2, 0.25)
    text = replayable_text(found)
    assert "58 of 90 episodes can be replayed" in text
    assert "and 38 more" in text
    assert text.endswith(f"replay one with: engram replay {where} 2-0@2")
    assert [line.episode for line in replayable(where, 40).episodes][28:31] == [
        "2-28@2",
        "0-0@0",
        "0-1@0",
    ]


def test_the_command_lists_without_an_episode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = recorded(tmp_path, 0, 3)
    assert run_command(["replay", where]) == 0
    assert "29 of 90 episodes" in capsys.readouterr().out
    assert run_command(["replay", where, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["replayable"], len(told["episodes"])) == (29, 20)


def test_where_nothing_can_be_replayed_the_reason_is_told(tmp_path: Path) -> None:
    text = replayable_text(replayable(recorded(tmp_path, 3)))
    assert text.startswith("none of the 90 episodes of ")
    assert "checkpoints are kept of steps 3" in text
    assert "learner.keep_checkpoints" in text
