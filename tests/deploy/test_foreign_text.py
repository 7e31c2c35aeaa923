"""Text that is not engram's own, in what commands print: it must not steer a terminal, and no
encoding of the terminal ends a command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.data import conversations
from common.failures import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED
from common.text.printable import printable
from deploy.cli import run_command

ROOT = Path(__file__).resolve().parent.parent.parent
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
EVIL = ("\x1b]2;owned\x07", "\x9b2J", "\x1b[1A\x1b[2K", "\u202eOK\u202c", "\r\x7f", "\x00")


def test_only_what_steers_a_terminal_is_replaced() -> None:
    assert printable("naïve 猫\n\x1b[2J\ttab\r\n") == "naïve 猫\n\ufffd[2J\ttab\n"
    # Joiners and marks belong to words and emoji.
    for text in ("👨‍👩‍👧", "می‌خواهم", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "a\u00a0b", "e\u0301", "שלום\u200f!"):
        assert printable(text) == text
    assert all(not STEERS.search(printable(evil)) for evil in EVIL)
    assert printable("\ud83d") == "\ufffd"


@pytest.mark.parametrize("evil", EVIL)
def test_no_command_on_data_lets_them_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], evil: str
) -> None:
    asked = {"query": f"{evil}?", "answer": f"Rex{evil}", "facts": [{"value": "Rex", "said_in": 0}]}
    row = {"query": f"my dog is{evil} Rex", "answer": "okay", "interactions": [asked]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    wrong = tmp_path / "wrong.jsonl"
    faults = [row | {f"x{evil}": 1}, row | {"strategy": evil}, row | {"query": ""}]
    wrong.write_text("".join(json.dumps(each) + "\n" for each in faults))
    for command, file, code in (
        ("inspect", path, EXIT_DONE),
        ("validate", path, EXIT_DONE),
        ("inspect", wrong, EXIT_BAD_INPUT),
        ("validate", wrong, EXIT_BAD_INPUT),
        ("validate", tmp_path / f"absent{evil.replace(chr(0), '')}.jsonl", EXIT_BAD_INPUT),
    ):
        assert run_command(["data", command, str(file)]) == code
        said = capsys.readouterr()
        assert said.out + said.err
        assert not STEERS.search(said.out + said.err)


def test_a_setting_that_is_quoted_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for word in ("na\x1b[2Jme=x", 'seed="\x1b[2J"', "\x1b]0;owned\x07.yaml"):
        assert run_command(["plan", str(ROOT / "configs" / "demo.yaml"), word]) == EXIT_BAD_INPUT
        assert not STEERS.search(capsys.readouterr().err)


ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


@pytest.mark.parametrize(
    "encoding", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, ASCII]
)
def test_an_encoding_that_lacks_characters_ends_no_command(
    tmp_path: Path, encoding: dict[str, str]
) -> None:
    asked = {"query": "猫?", "answer": "タマ"}
    row = {"query": "猫はタマ", "answer": "よし", "interactions": [asked]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    config = tmp_path / "run.yaml"
    config.write_text("name: жук\ndata: {kind: synth}\nstages: [{stage: sft}]\n", encoding="utf-8")
    absent = "нет.yaml" if encoding is not ASCII else "absent.yaml"
    for words, code in (
        (["data", "inspect", str(path)], EXIT_DONE),
        (["plan", str(config)], EXIT_DONE),
        (["plan", str(config), f"stages.{absent}=1"], EXIT_BAD_INPUT),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "deploy", *words],
            cwd=ROOT,
            capture_output=True,
            env=os.environ | encoding,
            timeout=60,
        )
        assert done.returncode == code, done.stderr.decode(errors="replace")
        assert b"Traceback" not in done.stderr


def test_an_eof_error_in_a_command_is_shown_and_not_called_aborted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(source: str) -> None:
        raise EOFError("a cache ends too early")

    monkeypatch.setattr(conversations, "load_rows", cut)
    assert run_command(["data", "inspect", "rows.jsonl"]) == EXIT_FAILED
    said = capsys.readouterr().err
    assert "EOFError: a cache ends too early" in said
    assert "Aborted" not in said


def test_ctrl_c_ends_a_command_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(source: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conversations, "load_rows", interrupted)
    assert run_command(["data", "inspect", "rows.jsonl"]) != EXIT_DONE
    assert "Traceback" not in capsys.readouterr().err
