"""`engram data convert chat` and `preferences`: what is written, told and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.data.conversations import load_pairs, load_rows
from common.data.preferences import load_preferences
from common.failures import EXIT_BAD_INPUT, EXIT_DONE
from deploy.cli import run_command


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def talk(n: int) -> dict[str, Any]:
    said = [("user", f"Robot {n} eats tin."), ("assistant", "Noted."), ("user", "What?")]
    messages = [{"role": role, "content": text} for role, text in (*said, ("assistant", "Tin."))]
    return {"messages": [{"role": "system", "content": "Be kind."}, *messages], "facts": ["tin"]}


@pytest.mark.parametrize("format", ["jsonl", "jsonl.gz", "parquet"])
def test_chat_writes_splits_and_pairs_and_tells_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    file = write(tmp_path / "chats.jsonl", *map(talk, range(20)), talk(0))
    out = tmp_path / "out"
    words = ["data", "convert", "chat", file, str(out), "eval_fraction=0.2", "--format", format]
    assert run_command(words) == EXIT_DONE
    train, held = (load_rows(out / f"{name}.{format}") for name in ("train", "eval"))
    assert len(train) + len(held) == 20
    assert held
    assert all(row.interactions[0].facts[0].value == "tin" for row in train)
    assert len(load_pairs(out / f"pairs.{format}")) == 2 * len(train)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{out}/train.{format}: {len(train)} conversations"
    assert told[4].split("  ") == ["Left out or changed"]
    assert told[6].split() == ["system", "messages", "21", *f"{file}, line 1".split()]
    assert told[7].endswith(f"  1  {file}, line 21")


def test_several_files_are_one_set_and_all_faults_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(tmp_path / "one.jsonl", talk(0), talk(1))
    two = write(tmp_path / "two.jsonl", talk(2))
    assert run_command(["data", "convert", "chat", one, two, str(tmp_path / "out")]) == EXIT_DONE
    assert "train.jsonl: 2 conversations" in capsys.readouterr().out
    bad = write(tmp_path / "bad.jsonl", {"messages": [{"role": "usr"}]})
    assert run_command(["data", "convert", "chat", bad, str(tmp_path / "bad")]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err.splitlines()
    assert "line 1, field messages.0.role: is 'usr'; did you mean 'user'?" in said[0]
    assert "line 1, field messages.0.content: is missing" in said[1]
    assert not (tmp_path / "bad").exists()


def test_an_older_split_goes_where_the_new_one_is_empty(tmp_path: Path) -> None:
    file, out = write(tmp_path / "chats.jsonl", talk(0), talk(1)), tmp_path / "out"
    assert run_command(["data", "convert", "chat", file, str(out)]) == EXIT_DONE
    assert (out / "eval.jsonl").exists()
    again = ["data", "convert", "chat", file, str(out), "eval_fraction=0"]
    assert run_command(again) == EXIT_DONE
    assert not (out / "eval.jsonl").exists()


def test_preferences_are_written_as_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "\n\nHuman: Tea {}?\n\nAssistant: {}"
    file = write(
        tmp_path / "told.jsonl",
        *({"chosen": said.format(n, "Yes."), "rejected": said.format(n, "No.")} for n in range(30)),
        {"chosen": said.format(0, "Yes."), "rejected": said.format(0, "Yes.")},
    )
    out = tmp_path / "out"
    assert run_command(["data", "convert", "preferences", file, str(out)]) == EXIT_DONE
    train, held = (load_preferences(out / f"{name}.jsonl") for name in ("train", "eval"))
    assert len(train) + len(held) == 30
    told = capsys.readouterr().out
    assert f"{out}/train.jsonl: {len(train)} preferences in {len(train)} groups" in told
    assert "answers that are alike" in told


LONG = {
    "babilong": {"input": "Mary is in the hall. " * 3, "question": "Where?", "target": "hall"},
    "longmemeval": {
        "question_id": "q",
        "question": "Where?",
        "answer": "hall",
        "haystack_sessions": [
            [
                {"role": "user", "content": "In the hall. Yes. Well, maybe.", "has_answer": True},
                {"role": "assistant", "content": "Noted."},
            ]
        ],
    },
    "locomo": {
        "conversation": {
            "session_1": [{"speaker": "A", "dia_id": "D1:1", "text": "In the hall. Yes, yes."}]
        },
        "qa": [{"question": "Where?", "answer": "hall", "evidence": ["D1:1"], "category": 4}],
    },
}


@pytest.mark.parametrize("name", LONG)
def test_long_files_become_conversations_to_evaluate_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = write(tmp_path / "long.jsonl", LONG[name])
    words = ["data", "convert", name, file, str(tmp_path / "out"), "max_words=5"]
    assert run_command(words) == EXIT_DONE
    (row,) = load_rows(tmp_path / "out/eval.jsonl")
    assert len(row.turns) > 2
    assert [fact.value for fact in row.turns[-1].facts] == ["hall"]
    assert "out/eval.jsonl: 1 conversation" in capsys.readouterr().out
    write(tmp_path / "long.jsonl", {"other": 1})
    assert run_command(words) == EXIT_BAD_INPUT
    assert "long.jsonl, line 1, field" in capsys.readouterr().err


def test_persona_chats_become_conversations_that_recall(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chats.csv"
    file.write_text(
        "user 1 personas,user 2 personas,Best Generated Conversation\n"
        'I sing.,"I ride horses.\nI bake.","User 1: Hi\nUser 2: I ride horses."\n'
    )
    words = ["data", "convert", "persona", str(file), str(tmp_path / "out"), "eval_fraction=0"]
    assert run_command(words) == EXIT_DONE
    (row,) = load_rows(tmp_path / "out/train.jsonl")
    assert [turn.role for turn in row.interactions] == ["remember", "recall"]
    assert "lines of a persona that no answer uses       1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["chat", "{file}"], "give the files to read, then the folder"),
        (["chat", "{file}", "{file}"], "is a file; the last name is the folder"),
        (["chat", "{file}", "out", "eval_fracton=0"], "did you mean 'eval_fraction'"),
        (["chat", "{file}", "out", "columns.rol=speaker"], "did you mean 'role'"),
        (["chat", "none.jsonl", "out"], "there is no such file"),
        (["preferences", "{file}", "out"], "chosen: is missing"),
        (["chats", "{file}", "out"], "No such command 'chats'"),
    ],
)
def test_wrong_words_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    file = write(tmp_path / "chats.jsonl", talk(0))
    said = ["data", "convert", *(word.format(file=file) for word in words)]
    assert run_command(said) == EXIT_BAD_INPUT
    assert what in " ".join(capsys.readouterr().err.split())
