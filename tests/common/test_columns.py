"""Columns with other names, and columns that are passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.config.conversion import PreferenceColumns, RowColumns
from common.config.data import PreferencesData, RowsData
from common.config.loader import load_section
from common.data.columns import columns_of
from common.data.conversations import load_pairs, load_rows, load_texts
from common.data.datasets.table import load_corpus
from common.data.preferences import load_preferences
from common.episode import Interaction
from common.failures import InputError

ALPACA = {"instruction": "Add.", "input": "1 and 2", "output": "3", "text": "Below is …", "n": 7}
NAMES = {"query": "instruction", "answer": "output"}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def columns(**named: Any) -> Any:
    return columns_of(RowColumns(**named))


def test_named_columns_are_read_and_others_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", ALPACA, {**ALPACA, "output": None, "input": ""})
    with pytest.raises(InputError, match="line 2, field answer: is missing"):
        load_pairs(path, columns(**NAMES))
    path = write(tmp_path / "pairs.jsonl", ALPACA)
    assert load_pairs(path, columns(**NAMES)) == [Interaction("Add.", "3")]


def test_several_columns_are_joined_where_they_have_text(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", ALPACA, ALPACA | {"input": ""}, ALPACA | {"input": None})
    joined = columns(query=["instruction", "input"], answer="output")
    assert [pair.query for pair in load_pairs(path, joined)] == ["Add.\n1 and 2", "Add.", "Add."]


def test_an_own_name_is_enough_to_pass_the_others_over(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", {"query": "a", "answer": "b", "source": "x"})
    assert load_pairs(path, columns(query="query")) == [Interaction("a", "b")]
    path = write(tmp_path / "texts.jsonl", {"text": "a", "url": "x"})
    assert load_texts(path, columns(text="text")) == ["a"]


def test_a_field_from_no_column_is_passed_over(tmp_path: Path) -> None:
    told = {"question": "a", "chosen": "b", "rejected": "c", "history": "of the world"}
    path = write(tmp_path / "told.jsonl", told)
    named = PreferenceColumns(prompt="question")
    with pytest.raises(InputError, match="field history: should be a list, not text"):
        load_preferences(path, columns_of(named))
    (read,) = load_preferences(path, columns_of(PreferenceColumns(prompt="question", history=())))
    assert (read.prompt, read.answers, read.history) == ("a", ("b", "c"), ())


def test_a_column_that_is_read_as_another_field_is_not_read_as_its_own(tmp_path: Path) -> None:
    told = {"history": "a", "chosen": "b", "rejected": "c"}
    path = write(tmp_path / "told.jsonl", told)
    (read,) = load_preferences(path, columns_of(PreferenceColumns(prompt="history")))
    assert (read.prompt, read.history) == ("a", ())


def test_without_columns_an_unknown_one_is_a_fault_that_says_how_to_pass_it_over(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "pairs.jsonl", {"query": "a", "anser": "b"})
    with pytest.raises(InputError, match=r"did you mean 'answer'\? \(`data.columns` names"):
        load_pairs(path)
    path = write(tmp_path / "rows.jsonl", {"messages": [{"role": "user", "content": "hi"}]})
    with pytest.raises(InputError, match=r"field messages.*`engram data convert chat` reads"):
        load_rows(path)


@pytest.mark.parametrize(
    ("named", "what"),
    [
        (
            {"query": "instrction", "answer": "output"},
            "no column 'instrction', which columns.query",
        ),
        ({"query": "instruction", "answer": "output", "think": "inputs"}, "no column 'inputs'"),
        ({"query": ["instruction", "inpt"], "answer": "output"}, "did you mean 'input'"),
    ],
)
def test_a_misspelt_column_is_named(tmp_path: Path, named: dict[str, Any], what: str) -> None:
    path = write(tmp_path / "pairs.jsonl", ALPACA)
    with pytest.raises(InputError) as caught:
        load_pairs(path, columns(**named))
    assert what in caught.value.what


def test_where_no_named_column_is_there_records_are_read_as_they_are(tmp_path: Path) -> None:
    own = {"query": "a", "answer": "b"}
    assert load_pairs(write(tmp_path / "own.jsonl", own), columns(**NAMES))
    with pytest.raises(InputError, match="field source: is no field"):
        load_pairs(write(tmp_path / "own.jsonl", own | {"source": "x"}), columns(**NAMES))


def test_the_columns_of_a_run_serve_files_of_several_origins(tmp_path: Path) -> None:
    row = {"query": "a", "answer": "b", "interactions": [{"query": "c", "answer": "d"}]}
    (tmp_path / "story.txt").write_text("Once.\n")
    data = load_section(
        RowsData,
        {
            "train": [str(write(tmp_path / "train.jsonl", row))],
            "eval": [str(write(tmp_path / "eval.jsonl", row | {"query": "e"}))],
            "texts": [str(tmp_path / "story.txt")],
            "pairs": [str(write(tmp_path / "pairs.jsonl", ALPACA))],
        },
        [],
        ["columns={query: [instruction, input], answer: output}"],
    )
    corpus = load_corpus(data, 0)
    assert corpus.pairs == [Interaction("Add.\n1 and 2", "3")]
    assert corpus.texts == ["Once."]
    assert [row.query for row in corpus.train + corpus.eval] == ["a", "e"]


def test_preferences_of_a_run_have_columns_too(tmp_path: Path) -> None:
    told = [
        {"question": f"q{i}", "good": "yes", "bad": "no", "score": i, "model": "x"}
        for i in range(20)
    ]
    data = load_section(
        PreferencesData,
        {"train": [str(write(tmp_path / "told.jsonl", *told))]},
        [],
        ["columns={prompt: question, chosen: good, rejected: bad, margin: score}"],
    )
    corpus = load_corpus(data, 0)
    found = [*corpus.preferences, *corpus.held_preferences]
    assert sorted(each.margin for each in found) == list(range(20))


def test_an_unknown_field_among_the_columns_is_a_fault_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"unknown key columns\.qery; did you mean 'query'"):
        load_section(RowsData, {"train": [], "eval": []}, [], ["columns.qery=a"])
