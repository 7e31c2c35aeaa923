"""Conversations of a run as `engram episodes` prints them, from a journal as runs write it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.episode import Episode, Fact, Turn
from common.failures import EXIT_BAD_INPUT, EXIT_DONE
from common.storage.run_directory import RunDirectory
from deploy.cli import run_command
from rollout.journal import conversations
from rollout.journal.journal import Journal

IDS = {"query_ids": [1], "answer_ids": [2], "log_probs": [-0.5], "reference_ids": [3]}


def conversation(
    name: str, iteration: int, answer: str, reward: float | None, **more: str
) -> Episode:
    """A dog is told of, changes its name, small talk is made, and its name is asked for."""
    asked = Turn(
        **IDS,
        role="recall",
        query="What is my dog called?",
        answer=answer,
        reference="Your dog is called Rex.",
        facts=(Fact("Rex", 1, ("Max",)), Fact("Rome", 0)),
        rewards={} if reward is None else {"bleu": 0.25, "recall": reward},
        reward=reward,
        failure=more.get("failure"),
    )
    turns = (
        Turn(**IDS, role="remember", query="I live in Rome. My dog is Max.", answer="I see."),
        Turn(**IDS, query="He is Rex now.", answer="Rex it is.", reward=0.9),
        Turn(**IDS, role="distract", query="It rains.", answer="Stay\ndry.", reward=0.95),
        asked,
    )
    status = "unscored" if reward is None else "scored"
    return Episode(name, name, 3, turns, 40, step="all", status=status, iteration=iteration)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of six conversations: four sealed in two files, two as they arrived."""
    folder = tmp_path / "dogs"
    folder.mkdir()
    (folder / "config.yaml").write_text("format: 1\n")
    journal = Journal(folder, stage=4)
    episodes = [
        [
            conversation("a", 0, "Your dog is called Max.", 0.1),
            conversation("b", 0, "Your dog is called Rex, in Rome.", 1.0),
        ],
        [conversation("c", 1, "Luna", 0.0), conversation("d", 1, "", None, failure="late\nreward")],
        [conversation("e", 2, "Rex", 0.5), conversation("f", 2, "\x1b[2JRex", 0.5)],
    ]
    for iteration, batch in enumerate(episodes):
        journal.dealt(iteration, [one.task for one in batch])
        journal.arrived(iteration, batch)
        if iteration < 2:
            journal.seal()
    return folder


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run_command(["episodes", *words]) == EXIT_DONE
    return capsys.readouterr().out


def names(text: str) -> str:
    """Names of the conversations, in their order."""
    return "".join(
        line.split()[1].rstrip(":") for line in text.splitlines() if line.startswith("episode ")
    )


def test_a_conversation_shows_what_was_told_asked_answered_and_earned(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mean = (0.9 + 0.95 + 0.1) / 3
    text = printed(capsys, str(run), "--worst", "2")
    assert text.startswith("2 of 6 episodes, lowest mean reward first\n\nepisode c: ")
    assert text.split("\n\n")[2] == (
        f"episode a: stage 4, step all, iteration 0, weights 40, scored, mean reward {mean:.3f}\n"
        "    told     I live in Rome. My dog is Max.\n"
        "             I see.\n"
        "  1 act\n"
        "    asked    He is Rex now.\n"
        "    answered Rex it is.\n"
        "    reward   0.900\n"
        "  2 distract\n"
        "    asked    It rains.\n"
        "    answered Stay\n"
        "             dry.\n"
        "    reward   0.950\n"
        "  3 recall\n"
        "    asked    What is my dog called?\n"
        "    answered Your dog is called Max.\n"
        "    expected Your dog is called Rex.\n"
        "    fact     Rex, told 2 turns before: not recalled; the outdated Max instead\n"
        "    fact     Rome, told 3 turns before: not recalled\n"
        "    reward   0.100 (bleu 0.25, recall 0.1)\n"
    )


def test_the_worst_are_found_by_the_rewards_of_a_role(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names(printed(capsys, str(run), "--worst", "9")) == "caefdb"
    text = printed(capsys, str(run), "--worst", "9", "--role", "recall")
    assert names(text) == "caefb", "one without a reward for this role is not the worst"
    assert "scored, mean reward of recall turns 0.100" in text
    assert "Rex, told 2 turns before: recalled" in text


def test_the_latest_and_the_failed_are_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert names(printed(capsys, str(run), "--limit", "3")) == "def"
    failed = printed(capsys, str(run), "--failed")
    assert names(failed) == "d"
    assert "    answered (nothing)\n" in failed
    assert "    failed   late\n             reward\n" in failed
    none = printed(capsys, str(run), "--failed", "--role", "remember")
    assert none == "none of 6 episodes that failed with a turn of role remember\n"


def test_text_cannot_steer_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" not in printed(capsys, str(run))


def test_tools_get_the_same_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(printed(capsys, str(run), "--worst", "1", "--json"))
    assert told["total"] == 6
    assert [one["id"] for one in told["episodes"]] == ["c"]
    turn = told["episodes"][0]["turns"][3]
    assert turn["rewards"] == {"bleu": 0.25, "recall": 0.0}
    assert turn["facts"][0] == {
        "value": "Rex",
        "said_in": 1,
        "outdated": ["Max"],
        "distance": 2,
        "recalled": False,
    }
    assert "answer_ids" not in turn


def test_few_conversations_are_in_memory_at_once(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(conversations, "BATCH", 1)
    assert [
        one["id"] for one in conversations.conversations(RunDirectory.existing(str(run)))
    ] == list("abcdef")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--role", "recal"], "'recal' is no role; did you mean 'recall'?"),
        (["--worst", "0"], "Invalid value"),
    ],
)
def test_a_wrong_option_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert run_command(["episodes", str(run), *words]) == EXIT_BAD_INPUT
    assert said in capsys.readouterr().err


def test_a_run_without_episodes_and_a_damaged_file_are_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "episodes" / "part-00000001.parquet").write_bytes(b"PAR1 and then nothing")
    assert run_command(["episodes", str(run)]) == EXIT_BAD_INPUT
    assert "part-00000001.parquet: is damaged" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("format: 1\n")
    assert run_command(["episodes", str(empty)]) == EXIT_BAD_INPUT
    assert "holds no episodes yet" in capsys.readouterr().err
