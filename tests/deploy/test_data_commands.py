"""`engram data`: what its commands write, show and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.data.conversations import load_rows
from common.data.tokenizer import train_tokenizer
from common.failures import EXIT_BAD_INPUT, EXIT_DONE
from deploy.cli import run_command

ROW = {
    "query": "I live in Rome",
    "answer": "okay",
    "interactions": [{"query": "where do I live?", "answer": "in Rome"}],
}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run_command(["data", *words]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("format", ["jsonl", "jsonl.gz", "parquet"])
def test_synth_writes_splits_that_validate_and_inspect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    words = [
        "data",
        "synth",
        str(tmp_path / "out"),
        "train=30",
        "eval=4",
        "steps=[2, 4]",
        "--format",
        format,
    ]
    assert run_command(words) == EXIT_DONE
    path = tmp_path / "out" / f"train.{format}"
    assert {len(row.interactions) for row in load_rows(path)} == {2, 4}
    assert len(load_rows(path)) == 30
    capsys.readouterr()
    assert run_command(["data", "validate", str(path)]) == EXIT_DONE
    assert "30 conversations, all well" in capsys.readouterr().out.replace("\n", "")
    assert run_command(["data", "inspect", str(path)]) == EXIT_DONE
    shown = capsys.readouterr().out
    for word in (
        "conversations",
        "cumulative",
        "recall",
        "distance",
        "median",
        load_rows(path)[0].query.split()[0],
    ):
        assert word in shown


def test_synth_spreads_facts_and_counts_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = tmp_path / "talk.jsonl"
    write(talk, ROW | {"interactions": [{"query": "hello " * 50, "answer": "in Rome"}] * 2})
    out = tmp_path / "out"
    words = ["data", "synth", "long_context", str(out), "turns=[16,64]", "eval=2"]
    assert run_command([*words, f"talk=[{talk}]"]) == EXIT_BAD_INPUT
    said = capsys.readouterr().err
    assert f"{talk}: no turn is left that is short enough and says no value" in said
    write(talk, ROW | {"interactions": [{"query": "hello", "answer": "hi"}] * 2})
    assert run_command([*words, f"talk=[{talk}]", "--format", "parquet"]) == EXIT_DONE
    shown = capsys.readouterr().out
    assert f"{out}/eval_16.parquet: 2 conversations" in shown
    assert "turns of other talk that say a value asked for       1" in shown
    assert {len(row.interactions) for row in load_rows(out / "eval_64.parquet")} == {64}
    assert run_command(["data", "validate", str(out / "eval_64.parquet")]) == EXIT_DONE
    assert "did you mean 'turns'" in refused(capsys, "synth", "long_context", str(out), "turn=[16]")


def test_synth_tells_many_facts_and_asks_for_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "synth", "capacity", str(tmp_path), "facts=[8]", "eval=3", "train=2"]
    assert run_command(words) == EXIT_DONE
    shown = capsys.readouterr().out
    assert f"{tmp_path}/train_8.jsonl: 2 conversations" in shown
    assert [len(row.turns) for row in load_rows(tmp_path / "eval_8.jsonl")] == [18] * 3
    assert "values: is 9, but 8 facts" in refused(
        capsys, "synth", "capacity", str(tmp_path), "facts=[8]", "values=9"
    )


def test_another_seed_gives_other_conversations(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert (
            run_command(
                ["data", "synth", str(tmp_path / name), "train=5", "eval=1", "--seed", str(seed)]
            )
            == EXIT_DONE
        )
    a, b, c = ((tmp_path / name / "train.jsonl").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_converted_babi_passes_with_inferred_values(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_command(
            ["data", "convert", "babi", str(shared / "data/babi10k"), str(tmp_path), "tasks=[6]"]
        )
        == EXIT_DONE
    )
    for split in ("train", "eval", "test"):
        assert (
            run_command(["data", "validate", str(tmp_path / f"{split}.jsonl"), "--inferred"])
            == EXIT_DONE
        )
    assert "was never said" in refused(capsys, "validate", str(tmp_path / "test.jsonl"))


def test_bad_settings_and_missing_folders_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "did you mean 'train'" in refused(capsys, "synth", str(tmp_path), "trian=5")
    assert "should be greater than or equal to 2" in refused(
        capsys, "synth", str(tmp_path), "values=1"
    )
    assert "qa1_" in refused(capsys, "convert", "babi", str(tmp_path), str(tmp_path))
    assert "sgd_compact_train" in refused(capsys, "convert", "sgd", str(tmp_path), str(tmp_path))


def test_validate_shows_every_fault_and_ends_with_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n" + json.dumps({**ROW, "anwser": "x"}) + "\n")
    said = refused(capsys, "validate", str(path)).splitlines()
    assert "line 1: broken JSON" in said[0]
    assert "line 2, field anwser" in said[1]
    assert "line 1: broken JSON" in said[-1]


def test_validate_refuses_an_outdated_value_and_warns_of_one_in_its_own_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {
        "query": "where do I live?",
        "answer": "in Rome",
        "facts": [{"value": "Rome", "said_in": 0}],
    }
    moved = [{"query": "now I live in Oslo", "answer": "okay"}, asked]
    path = write(tmp_path / "stale.jsonl", {**ROW, "interactions": moved})
    assert (
        "stale.jsonl, line 1, field interactions.1.facts.0.value: 'Rome' is out of date"
        in refused(capsys, "validate", str(path))
    )
    assert len(load_rows(path)) == 1

    path = write(
        tmp_path / "easy.jsonl",
        {**ROW, "interactions": [{**asked, "query": "do I live in Rome?", "answer": "yes"}] * 11},
    )
    assert run_command(["data", "validate", str(path), "--inferred"]) == EXIT_DONE
    shown = capsys.readouterr()
    assert (
        "warning: "
        + str(path)
        + ", line 1, field interactions.0.facts.0.value: 'Rome' stands in the question"
        in shown.err
    )
    assert "warning: and 2 more\nwarning: few data: 1 conversation." in shown.err
    assert shown.out == f"{path}: 1 conversation, no faults, 22 warnings\n"


def test_validate_measures_answers_with_a_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tokenizer(["in Rome"], 264).save(tmp_path / "tokenizer")
    path = write(tmp_path / "rows.jsonl", ROW)
    limit = ["--tokenizer", str(tmp_path / "tokenizer"), "--max-answer-tokens"]
    assert run_command(["data", "validate", str(path), *limit, "20"]) == EXIT_DONE
    assert "interactions.0.answer" in refused(capsys, "validate", str(path), *limit, "8")
    assert "goes together" in refused(capsys, "validate", str(path), "--max-answer-tokens", "8")
    whole = [*limit[:2], "--max-tokens"]
    assert run_command(["data", "validate", str(path), *whole, "99"]) == EXIT_DONE
    assert "tokens with its answer, 8 are" in refused(capsys, "validate", str(path), *whole, "8")
    assert "goes together" in refused(capsys, "validate", str(path), *limit[:2])


def test_validate_counts_conversations_that_never_end_and_contradictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = [{"value": "Rome", "said_in": 0}, {"value": "Oslo", "said_in": 1, "outdated": ["Rome"]}]
    row = {
        "query": "I live in Rome.",
        "answer": "okay",
        "interactions": [
            {"query": "Now I live in Oslo.", "answer": "okay", "role": "remember"},
            {"query": "Where do I live?", "answer": "Rome and Oslo", "facts": facts},
        ],
    }
    path = write(tmp_path / "rows.jsonl", row, row)
    flags = ["--inferred"]  # that Rome is out of date is a fault of its own
    assert run_command(["data", "validate", str(path), *flags]) == EXIT_DONE
    shown = capsys.readouterr()
    assert "line 1, field interactions.1.facts: contradict one another: it asks for" in shown.err
    assert "no faults, 2 warnings, 1 repeated" in shown.out
    told = refused(capsys, "validate", str(path), *flags, "--max-follow-ups", "1")
    assert "has 2 follow-ups, 1 are allowed" in told
    assert "(and 1 more)" in told


def test_divide_tells_long_turns_in_several_and_counts_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path / "rows.jsonl", ROW), tmp_path / "divided.jsonl"
    assert run_command(["data", "divide", str(path), str(out), "--max-words", "60"]) == EXIT_DONE
    assert "nothing was left out" in capsys.readouterr().out
    assert load_rows(out) == load_rows(path)
    assert run_command(["data", "divide", str(path), str(out), "--max-words", "2"]) == EXIT_DONE
    assert "told in several" in capsys.readouterr().out
    assert len(load_rows(out)[0].turns) > len(load_rows(path)[0].turns)
