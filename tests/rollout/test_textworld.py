"""Text games: prompts, actions and what they pay, examples, processes that die, files that are
none, and episodes of a model."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from pydantic import ValidationError

from common.config.textworld import PROMPTS, TextWorldEnvironment
from common.episode import Task
from common.failures import DataFailure, InputError
from deploy.text_games import Challenge, make_games
from rollout.environments.game_process import game_files, require_textworld
from rollout.environments.table import require_environment
from rollout.environments.textworld import TextWorld, action_of, command_of, walkthrough
from rollout.protocols import Observation, WorksAhead

FOLDER = TemporaryDirectory(prefix="engram-games-")
"""Games of this process; gone when it ends."""


def require_games() -> None:
    """Skip where nothing makes and plays games: see docs/testing.md."""
    pytest.importorskip("textworld", reason="text games: pip install -e '.[dev,textworld]'")


def game(seed: int = 43) -> str:
    """A simple game, made with the settings of `engram data synth textworld`."""
    require_games()
    return str(make_games(Path(FOLDER.name), Challenge.simple, 1, seed, [])[0])


def settings(*games: str, **changes: Any) -> TextWorldEnvironment:
    return TextWorldEnvironment.model_validate({"kind": "textworld", "games": games} | changes)


def begun(*games: str, seed: int = 0, **changes: Any) -> tuple[TextWorld, Observation]:
    played = TextWorld(settings(*(games or (game(),)), **changes))
    start = played.reset(Task("t", None, seed, environment="textworld"))
    assert start.observation is not None
    return played, start.observation


# --- actions and prompts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "marker", "action"),
    [
        ("open chest", "", "open chest"),
        ("\n\n  open chest\nthen go", "", "open chest"),
        ("...open chest. Then go east.", "", "...open chest."),
        ("go east, now", "", "go east,"),
        ("I need a key. Action: take key\nAction: drop key", "Action:", "take key"),
        ("I need a key.", "Action:", ""),
        ("?!", "", "?!"),
        ("", "", ""),
    ],
)
def test_an_action_is_what_follows_the_marker_up_to_the_end_of_its_sentence(
    answer: str, marker: str, action: str
) -> None:
    assert action_of(answer, marker) == action


def test_a_command_has_small_letters_and_no_punctuation() -> None:
    assert command_of(" Take  the KEY.") == "take the key"
    assert command_of("go é\\x east~\x00, #1") == "go x east 1"
    assert len(command_of("go " * 500)) == 100


@pytest.mark.parametrize(
    "answer", ["quit", "restart", "\\w1", "save", "\\~#!", "", "a" * 4000, "éü漢", "undo"]
)
def test_what_means_something_to_the_interpreter_is_an_invalid_action(answer: str) -> None:
    played, _ = begun()
    played.step("open chest drawer")
    outcome = played.step(answer)
    assert outcome.reward == -0.5
    assert outcome.figures["score"] == pytest.approx(1 / 7)  # the game went on as it was
    assert played.step("take old key from chest drawer").reward == pytest.approx(1.0)
    played.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "chose"}, "did you mean 'choose'"),
        ({"prompt": "{objectiv} {room}"}, r"\{objectiv\} .*did you mean 'objective'"),
        ({"prompt": "{objective}"}, r"must contain \{observation\} or \{room\}"),
        ({"prompt": "{room"}, "is no template"),
        ({"step": "{observation}"}, r"must contain \{action\}"),
        ({"history": 0, "examples": {"probability": 0.3}}, "remembered in {history} alone"),
        ({"games": []}, "games"),
    ],
    ids=str,
)
def test_a_prompt_that_is_none_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        settings("g.z8", **changes)


def test_a_prompt_holds_objective_last_steps_what_is_seen_and_valid_actions() -> None:
    played, first = begun(prompt="choose", history=2)
    objective = " ".join(played.state.objective.split())
    assert first.query.startswith(f"{objective} -= ")
    assert first.query.endswith(". You choose the action to")
    assert "examine" not in first.query
    assert "carrying" not in first.query  # nothing is
    assert "Your possible actions are close" not in first.query
    for command in ("open chest drawer", "take old key from chest drawer", "look"):
        second = played.step(command).observation
    assert second is not None
    before = second.query.partition("You are carrying: an old key")[0]
    assert "You open the chest drawer, revealing an old key." in second.query
    assert second.query.count("You take old key from chest drawer.") == 1
    assert second.query.count("You look.") == 1
    assert "You open chest drawer." not in before  # two steps are held, and this was the third
    played.close()


@pytest.mark.parametrize("name", PROMPTS)
def test_each_prompt_that_comes_along_asks_in_its_own_way(name: str) -> None:
    played, asked = begun(prompt=name)
    assert asked.query.endswith(PROMPTS[name].rpartition("}")[2].strip())
    assert "go east" in asked.query or "open chest drawer" in asked.query
    played.close()


# --- pay and progress -----------------------------------------------------------------------------


def test_the_walkthrough_wins_and_each_of_its_steps_pays() -> None:
    file = game()
    played, asked = begun(file, rewards={"point": 1.0, "win": 5.0, "living": -0.1})
    paid, figures = [], []
    for command in played.state.walkthrough:
        assert asked is not None
        assert asked.reference == command
        outcome = played.step(command)
        asked = outcome.observation
        paid.append(outcome.reward)
        figures.append(outcome.figures)
    assert asked is None
    assert sum(paid) == pytest.approx(played.state.most + 5.0 - 0.1 * len(paid))
    assert paid[-1] > 4.0
    assert [each["score"] for each in figures] == sorted(each["score"] for each in figures)
    assert figures[-1] == {
        "score": 1.0, "won": 1.0, "lost": 0.0, "walkthrough": 1.0, "invalid": 0.0, "examples": 0.0,
    }  # fmt: skip
    assert figures[0]["walkthrough"] == pytest.approx(1 / len(paid))
    assert [each.answer for each in walkthrough(settings(file), file)] == played.state.walkthrough


def test_an_action_that_the_game_does_not_take_pays_the_penalty() -> None:
    played, _ = begun(rewards={"invalid": -0.7, "living": -0.1}, marker=">")
    assert played.step("> fly to the moon").reward == pytest.approx(-0.8)
    assert played.step("look").reward == pytest.approx(-0.8)  # without the marker
    assert played.step("I look around. > look").reward == pytest.approx(-0.1)
    assert played.step("> look").reward == pytest.approx(-0.1)  # again, and valid again
    assert played.step("> go east").reward == pytest.approx(-0.8)  # the door is closed
    outcome = played.step("> OPEN the chest drawer, please")
    assert outcome.reward == pytest.approx(0.9)
    assert outcome.figures["invalid"] == pytest.approx(3 / 6)
    assert outcome.observation is not None
    assert "I look around" not in outcome.observation.query  # thoughts are not remembered
    played.close()


# --- examples -------------------------------------------------------------------------------------


def test_examples_are_remembered_and_not_paid() -> None:
    changes = {"examples": {"probability": 0.7, "actions": "walkthrough"}, "history": 3}
    for seed in range(20):
        played, asked = begun(seed=seed, **changes)
        if played.tally.examples in (1, 2):
            break
        played.close()
    shown = played.state.walkthrough[: played.tally.examples]
    assert played.state.score == len(shown)
    assert all(f"You {command}." in asked.query for command in shown)
    played._settings = settings(game())  # no more examples: what the next action pays is its own
    outcome = played.step(played.next_of_walkthrough)
    assert outcome.reward == pytest.approx(1.0)
    assert outcome.figures["examples"] == len(shown)
    played.close()


def test_examples_are_those_of_the_seed() -> None:
    changes = {"examples": {"probability": 0.6}}
    asked = []
    for seed in (3, 3, 4):
        played, first = begun(seed=seed, **changes)
        second = played.step("look").observation
        asked.append((first.query, second.query if second else ""))
        played.close()
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]


# --- what cannot be played ------------------------------------------------------------------------


def damaged(folder: Path, how: str) -> Path:
    """A copy of a game that is no game any more."""
    source, file = Path(game()), folder / "broken.z8"
    content = source.read_bytes()
    shutil.copy(source.with_suffix(".json"), folder / "broken.json")
    if how == "cut off":
        content = content[:5000]
    elif how == "one byte":
        content = content[:9000] + bytes([content[9000] ^ 1]) + content[9001:]
    elif how == "foreign":
        content = b"PK\x03\x04" + content
    elif how == "alone":
        (folder / "broken.json").unlink()
    elif how == "other json":
        (folder / "broken.json").write_text("{}")
    elif how == "half a json":
        (folder / "broken.json").write_text(source.with_suffix(".json").read_text()[:900])
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut off", r"is cut off: it has 5,000 of \d+,\d+ bytes"),
        ("one byte", "is damaged"),
        ("foreign", "is no story file of version 8"),
        ("alone", r"has no broken\.json beside it"),
        ("other json", r"is no game that TextWorld can begin \(KeyError"),
        ("half a json", "is no game that TextWorld can begin"),
    ],
)
def test_a_file_that_is_no_game_fails_its_own_episode(tmp_path: Path, how: str, said: str) -> None:
    file = damaged(tmp_path, how)
    other, _ = begun()
    with pytest.raises(DataFailure, match=rf"game broken\.z8 {said}"):
        begun(str(file))
    assert other.step("look").observation is not None
    other.close()


def test_a_game_whose_process_is_killed_fails_alone_and_the_next_one_plays() -> None:
    one, _ = begun()
    two, _ = begun()
    assert one._game is not None
    os.kill(one._game._process, signal.SIGKILL)
    with pytest.raises(DataFailure, match=r"tw-simple-43\.z8 ended its process .* take 'look'"):
        one.step("look")
    assert two.step("look").observation is not None
    one.close()
    two.close()
    three, _ = begun()
    three.close()


def test_a_game_that_hangs_is_ended_at_its_deadline() -> None:
    played, _ = begun()
    assert played._game is not None
    process, played._game._deadline = played._game._process, 0.3
    os.kill(process, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(DataFailure, match=r"did not take 'look' within 0.3 s"):
        played.step("look")
    assert time.monotonic() - started < 5
    _gone(process)


def test_a_starter_that_died_is_replaced() -> None:
    from rollout.environments.game_process import _STARTER

    played, _ = begun()
    assert played._game is not None
    status = Path(f"/proc/{played._game._process}/status").read_text()
    parent = int(status.split("PPid:")[1].split()[0])
    os.kill(parent, signal.SIGKILL)
    assert played.step("look").observation is not None  # its game goes on
    other, _ = begun()
    assert _STARTER._control is not None
    other.close()
    played.close()


def test_a_game_ends_when_it_is_closed() -> None:
    played, _ = begun()
    assert played._game is not None
    process = played._game._process
    played.close()
    _gone(process)


def _gone(process: int) -> None:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail(f"process {process} is there after 5 s")


def test_a_run_is_refused_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.z8 file in this folder"):
        require_environment(settings(str(tmp_path)))
    with pytest.raises(InputError, match=r"environment: game .*none\.z8: there is no such file"):
        require_environment(settings(str(tmp_path / "none.z8")))
    require_environment(settings(game()))


def test_a_folder_stands_for_its_games(tmp_path: Path) -> None:
    for name in ("b.z8", "a.z8", "a.json"):
        (tmp_path / name).write_text("")
    assert game_files((str(tmp_path), "c.z8")) == [
        str(tmp_path / "a.z8"), str(tmp_path / "b.z8"), "c.z8",
    ]  # fmt: skip


def test_the_package_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'engram-rl\[textworld\]'"):
        require_textworld()


def test_an_environment_of_games_works_ahead() -> None:
    assert isinstance(TextWorld(settings("g.z8")), WorksAhead)
