"""Episodes of a causal language model in text games: what they hold, what fails alone, and that
games work while others are answered."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.config.rollout import Rollout
from common.config.textworld import TextWorldEnvironment
from common.episode import Episode, Task
from common.episode_arrow import from_table, to_table
from learner.evaluation.replay import task_of
from learner.policies.table import CheckpointPolicy
from rollout.environments.textworld import TextWorld
from rollout.policies.causal.policy import CausalRolloutPolicy
from rollout.policies.play import play
from tests.rollout.test_textworld import damaged, game, settings
from tests.tiny_causal import opened, write_model

LENGTH = 1024


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = write_model(tmp_path_factory.mktemp("model"), changes={"n_positions": LENGTH})
    return opened(folder, interactions=0)


def policy(model: tuple[Any, Any], environment: TextWorldEnvironment) -> CausalRolloutPolicy:
    rollout = Rollout.model_validate({"slots": 4, "sampling": {"max_new_tokens": 5}})
    found = CheckpointPolicy("causal", *model).playing(rollout, environment)
    assert isinstance(found, CausalRolloutPolicy)
    return found


def tasks(count: int, turns: int = 3) -> list[Task]:
    return [
        Task(f"t{i}", None, seed=i, environment="textworld", max_turns=turns) for i in range(count)
    ]


SHORT = {"prompt": "{observation} {actions}", "history": 0}


def test_an_episode_that_the_step_limit_cuts_has_a_next_prompt_and_figures(
    model: tuple[Any, Any],
) -> None:
    (episode,) = play(policy(model, settings(game(), **SHORT)), tasks(1))
    assert episode.status == "generated"
    assert len(episode.answered) == 3
    assert episode.truncated  # the value of the next prompt stands for the rest
    assert not episode.answered[-1].done
    assert set(episode.figures) == {
        "score", "won", "lost", "walkthrough", "invalid", "examples",
    }  # fmt: skip
    assert episode.figures["invalid"] == 1.0  # nobody taught it a word
    assert [turn.rewards for turn in episode.answered] == [{"environment": -0.5}] * 3
    assert from_table(to_table([episode])) == [episode]


def said(episode: Episode) -> list[Any]:
    """All but log-probabilities, which round as their batch does."""
    turns = [(turn.query, list(turn.answer_ids), turn.rewards) for turn in episode.answered]
    return [turns, list(episode.next_query_ids), episode.figures]


def test_episodes_are_those_of_their_tasks(model: tuple[Any, Any]) -> None:
    """Whatever is played beside them; a recorded one is played again."""
    shown = {"examples": {"probability": 0.5}, "prompt": "{history}{observation}", "history": 1}
    environment = settings(game(), game(46), **shown)
    together = play(policy(model, environment), tasks(3, turns=2))
    assert sum(episode.figures["examples"] for episode in together) > 0
    alone = play(policy(model, environment), tasks(3, turns=2)[1:2])
    assert [said(each) for each in alone] == [said(together[1])]
    again = replace(task_of(together[1], None), max_turns=2)
    assert said(play(policy(model, environment), [again])[0]) == said(together[1])


def test_examples_are_not_among_the_turns_that_are_learnt_from(model: tuple[Any, Any]) -> None:
    shown = {"examples": {"probability": 0.6}, "prompt": "{history}{observation}", "history": 2}
    episodes = play(policy(model, settings(game(), **shown)), tasks(3, turns=2))
    assert sum(episode.figures["examples"] for episode in episodes) > 2
    for episode in episodes:
        assert len(episode.answered) == 2
        assert all(turn.log_probs for turn in episode.answered)
        assert episode.figures["invalid"] == 1.0


def test_a_damaged_game_fails_its_own_episodes(tmp_path: Path, model: tuple[Any, Any]) -> None:
    broken = damaged(tmp_path, "cut off")
    environment = settings(game(), str(broken), **SHORT)
    episodes = play(policy(model, environment), tasks(6, turns=1))
    status = [episode.status for episode in episodes]
    assert 0 < status.count("failed") < 6
    failures = {e.turns[-1].failure for e in episodes if e.status == "failed"}
    assert len(failures) == 1
    assert "turn 0: game broken.z8 is cut off" in str(failures.pop())


def test_a_game_that_dies_fails_its_own_episode(
    model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, victims = TextWorld.begin, []

    def dying(self: TextWorld, answer: str) -> None:
        if self.tally.steps == 1 and not victims:
            assert self._game is not None
            victims.append(self._game._process)
            os.kill(self._game._process, signal.SIGKILL)
        begin(self, answer)

    monkeypatch.setattr(TextWorld, "begin", dying)
    episodes = play(policy(model, settings(game(), **SHORT)), tasks(4))
    failed = [episode for episode in episodes if episode.status == "failed"]
    assert len(failed) == 1
    assert "ended its process as it was to take" in str(failed[0].turns[-1].failure)
    assert all(len(each.answered) == 3 for each in episodes if each.status != "failed")


def test_games_begin_an_action_before_they_are_asked_for_it(
    model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that several games work at once, and while other answers are generated."""
    told: list[tuple[str, int]] = []
    begin, step = TextWorld.begin, TextWorld.step

    def beginning(self: TextWorld, answer: str) -> None:
        told.append(("begin", id(self)))
        begin(self, answer)

    def stepping(self: TextWorld, answer: str) -> Any:
        told.append(("step", id(self)))
        return step(self, answer)

    monkeypatch.setattr(TextWorld, "begin", beginning)
    monkeypatch.setattr(TextWorld, "step", stepping)
    episodes: list[Episode] = play(policy(model, settings(game(), **SHORT)), tasks(4, turns=2))
    assert all(episode.status == "generated" for episode in episodes)
    assert len(told) == 16
    first = [what for what, _ in told].index("step")
    assert first >= 1
    for number, (what, which) in enumerate(told):
        if what == "step":
            assert ("begin", which) in told[:number]
    at_once = max(
        len({which for what, which in told[:n] if what == "begin"})
        - len({which for what, which in told[:n] if what == "step"})
        for n in range(first + 1)
    )
    assert at_once >= 1
