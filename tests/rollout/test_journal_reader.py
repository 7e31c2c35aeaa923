"""Reading a run's episodes: sealed and open parts alike, the last attempt of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.episode import Episode, Turn
from common.failures import InputError
from common.storage.run_directory import RunDirectory
from rollout.journal.journal import Journal
from rollout.journal.reader import episode_heads, find_episode, find_episodes


def episode(name: str, iteration: int = 0, index: int = 0, answer: str = "first") -> Episode:
    turns = (Turn([1], [], [], [4]), Turn([1], [2, 3], [-0.5, -0.25], [4], answer=answer))
    return Episode(
        name,
        f"{iteration}-{index}",
        3,
        turns,
        iteration,
        status="scored",
        iteration=iteration,
        batch_index=index,
    )


def recorded(directory: RunDirectory) -> RunDirectory:
    """Iteration 0 is sealed, iteration 1 was dealt twice, and its second attempt is open."""
    assert directory.local is not None
    directory.local.mkdir(exist_ok=True)
    journal = Journal(directory.local)
    for iteration, answer in ((0, "first"), (1, "before the resume")):
        names = [f"{iteration}{letter}" for letter in "ab"]
        journal.dealt(iteration, [f"{iteration}-{index}" for index in range(2)])
        journal.arrived(
            iteration,
            [episode(name, iteration, index, answer) for index, name in enumerate(names)],
        )
        journal.trained(iteration, iteration + 1)
    journal.seal()
    journal.roll_back(1)
    journal.dealt(1, ["1-0", "1-1"])
    journal.arrived(1, [episode("1a", 1, 0, "after"), episode("1b", 1, 1, "after")])
    return directory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return recorded(RunDirectory(str(tmp_path), "r"))


def test_heads_name_each_episode_once_the_most_recent_iteration_first(run: RunDirectory) -> None:
    heads = episode_heads(run)
    assert heads["id"].to_pylist() == ["1a", "1b", "0a", "0b"]
    assert heads["iteration"].to_pylist() == [1, 1, 0, 0]
    assert heads["attempt"].to_pylist() == [1, 1, 0, 0]


def test_episodes_are_found_in_the_order_asked_by_their_last_attempt(run: RunDirectory) -> None:
    found = find_episodes(run, ["0b", "1a", "none", "0a"])
    assert [each.episode.id for each in found] == ["0b", "1a", "0a"]
    assert [each.episode.turns[1].answer for each in found] == ["first", "after", "first"]
    assert find_episode(run, "0a").episode == replace(episode("0a"), turns=found[2].episode.turns)
    with pytest.raises(InputError, match=r"1z: is none of the run's 6 episodes, .* 0a to 1b"):
        find_episode(run, "1z")


def test_the_version_of_the_weights_may_be_left_out_of_an_id(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    journal = Journal(tmp_path / "r")
    for iteration, version in ((0, 7), (1, 8)):
        journal.dealt(iteration, [f"{iteration}-0"])
        journal.arrived(iteration, [episode(f"0-{iteration}@{version}", iteration)])
    run = RunDirectory(str(tmp_path), "r")
    assert find_episode(run, "0-1").episode.id == "0-1@8"
    with pytest.raises(InputError, match=r"0: is none of the run's 2 episodes"):
        find_episode(run, "0")


def test_a_run_without_episodes_says_so(tmp_path: Path) -> None:
    empty = RunDirectory(str(tmp_path), "empty")
    for read in (episode_heads, lambda run: find_episodes(run, ["a"])):
        with pytest.raises(InputError, match="holds no episodes yet"):
            read(empty)
