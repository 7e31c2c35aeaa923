"""Conversations that stand in two files, or twice in one, are named with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.data.overlaps import count_in_both, in_both, repeated
from common.episode import Interaction, Row
from deploy.cli import run_command


def row(name: str, answer: str = "okay") -> Row:
    return Row(f"my dog is {name}", answer, (Interaction("what is it called?", name),))


def write(path: Path, *names: str) -> str:
    records = [
        {
            "query": f"my dog is {name}",
            "answer": "okay",
            "interactions": [{"query": "what is it called?", "answer": name}],
        }
        for name in names
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_the_first_place_of_a_conversation_is_named_for_each_later_one() -> None:
    rows = [("1", row("Rex")), ("2", row("Bo")), ("3", row("Rex")), ("4", row("Rex"))]
    assert repeated(rows) == [("3", "1"), ("4", "1")]
    assert repeated(rows[:2]) == []


def test_another_answer_makes_another_conversation() -> None:
    held = [("a", row("Rex", "hm")), ("b", row("Bo")), ("c", row("Bo"))]
    train = [("1", row("Rex")), ("2", row("Bo")), ("3", row("Bo"))]
    assert in_both(train, held) == [("b", "2"), ("c", "2")]
    assert count_in_both([each for _, each in train], [each for _, each in held]) == 2


def test_two_files_are_checked_and_what_stands_in_both_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(tmp_path / "train.jsonl", "Rex", "Bo", "Rex")
    held = write(tmp_path / "held.jsonl", "Ida", "Bo")
    assert run_command(["data", "validate", train, held]) == 0
    out, err = capsys.readouterr()
    assert f"warning: {train}, line 3: is the conversation of {train}, line 1 again" in err
    assert f"warning: {held}, line 2: is trained on, as {train}, line 2" in err
    assert f"{train}: 3 conversations, no faults, 1 repeated" in out
    assert f"{held}: 2 conversations, all well" in out
    assert f"1 of the 2 conversations of {held} in {train}" in out


def test_of_many_the_first_are_named_and_the_others_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"Rex {number}" for number in range(30)]
    train = write(tmp_path / "train.jsonl", *names)
    assert run_command(["data", "validate", train, train]) == 0
    out, err = capsys.readouterr()
    assert err.count("is trained on, as") == 5
    assert "warning: and 25 more" in err
    assert f"30 of the 30 conversations of {train} in {train}" in out


def test_files_apart_say_so_and_a_fault_of_the_second_ends_with_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, held = write(tmp_path / "t.jsonl", "Rex"), write(tmp_path / "h.jsonl", "Bo")
    assert run_command(["data", "validate", train, held]) == 0
    assert "none of the 1 conversation" in capsys.readouterr().out
    (tmp_path / "h.jsonl").write_text("{}\n")
    assert run_command(["data", "validate", train, held]) == 2
    assert "h.jsonl, line 1" in capsys.readouterr().err
