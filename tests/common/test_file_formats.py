"""Records from every format of a data file, and what is damaged in one."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from common.data.conversations import load_pairs, load_rows, load_texts
from common.data.preferences import load_preferences
from common.data.readers import BadRecords, write_records
from common.data.validate import validate_rows
from common.episode import Fact, Interaction
from common.failures import InputError

PAIRS = [
    {"query": "how are you?", "answer": "fine, thanks"},
    {"query": 'say "hi"\nin two lines', "answer": "hi\nthere"},
    {"query": "číslo 12 🎈", "answer": "12"},
]
ENDINGS = ["jsonl", "jsonl.gz", "json", "json.gz", "csv", "csv.gz", "parquet"]


def save(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    """Records in the format of the path's ending, written by another program than the reader."""
    ending = path.name.partition(".")[2]
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(list(records)), path)
        return path
    if ending.startswith("csv"):
        cells = [
            {key: each if isinstance(each, str) else json.dumps(each) for key, each in row.items()}
            for row in records
        ]
        pa.csv.write_csv(pa.Table.from_pylist(cells), path.with_suffix(".tmp"))
        content = path.with_suffix(".tmp").read_bytes()
    elif ending.startswith("jsonl"):
        content = "".join(json.dumps(record) + "\n" for record in records).encode()
    else:
        content = json.dumps(records, indent=1).encode()
    path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_pairs_are_the_same_in_every_format(tmp_path: Path, ending: str) -> None:
    path = save(tmp_path / f"pairs.{ending}", PAIRS)
    assert load_pairs(path) == [Interaction(**pair) for pair in PAIRS]


@pytest.mark.parametrize("ending", ENDINGS)
def test_lists_and_numbers_are_read_in_every_format(tmp_path: Path, ending: str) -> None:
    fact = {"value": "Rex", "said_in": 0}
    asked = {"query": "my dog?", "answer": "Rex", "facts": [fact]}
    row = {"query": "my dog is Rex", "answer": "ok", "interactions": [asked]}
    (read,) = load_rows(save(tmp_path / f"rows.{ending}", [row]))
    assert read.interactions[0].facts == (Fact("Rex", 0),)
    assert validate_rows(tmp_path / f"rows.{ending}").rows == [read]
    told = {"prompt": "tea?", "chosen": "1", "rejected": "no", "margin": 0.5}
    (preference,) = load_preferences(save(tmp_path / f"told.{ending}", [told]))
    assert (preference.answers, preference.margin) == (("1", "no"), 0.5)


def test_a_file_of_json_may_hold_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    assert len(load_pairs(path)) == 3


@pytest.mark.parametrize("ending", ["txt", "txt.gz"])
def test_a_line_of_plain_text_is_a_text(tmp_path: Path, ending: str) -> None:
    content = b"\xef\xbb\xbfOnce upon a time.\r\n\r\n  \nThe end, [EOS] \xf0\x9f\x8e\x88"
    path = tmp_path / f"story.{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    assert load_texts(path) == ["Once upon a time.", "The end, [EOS] 🎈"]


def test_records_in_a_file_of_plain_text_are_told_by_its_ending(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text('{"query": "a", "answer": "b"}\n' * 3)
    with pytest.raises(BadRecords) as bad:
        load_rows(tmp_path / "rows.txt")
    (fault,) = bad.value.faults
    assert fault.what == "is read as lines of plain text, by its ending: is it a .jsonl file?"


def test_lines_of_plain_text_may_be_pairs(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("[Q] one [A] two\n[Q] three\n")
    with pytest.raises(InputError, match=r"pairs.txt, line 2, field text: should read"):
        load_pairs(tmp_path / "pairs.txt")
    (tmp_path / "pairs.txt").write_text("[Q] one [A] two\n")
    assert load_pairs(tmp_path / "pairs.txt") == [Interaction("one", "two")]


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        ("", "", "is empty"),
        ("query,answer\n", "", "is empty"),
        ("query,answer\na,b\nc\n", ", line 3", "has 1 cells, the header names 2"),
        ("query,answer\na,b,c\n", ", line 2", "has 3 cells, the header names 2"),
        ('query,answer\n"a\nb",c\nd,\n', ", line 4, field answer", "is missing"),
        ('query,answer\na,"b"c\n', ", line 2", "broken CSV"),
        ('query,answer\na,"b\n', ", line 2", "broken CSV"),
        ("query;answer\na;b\n", ", line 1", "are separated by semicolons"),
        ("query\tanswer\na\tb\n", ", line 1", "are separated by tabs"),
        ("query,answer,query\na,b,c\n", ", line 1", "names 'query' twice"),
        ('{"query": "a", "answer": "b"}\n', ", line 1", "with another ending"),
        ("query,,answer\na,b,c\n", ", line 1", "column 2 of the header has no name"),
        ("query,anwser\na,b\n", ", line 2, field anwser", "did you mean 'answer'"),
        ("query,answer\n,b\n", ", line 2, field query", "is missing"),
    ],
)
def test_damaged_csv_is_named_by_line(tmp_path: Path, content: str, where: str, what: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(content, newline="")
    with pytest.raises(InputError) as caught:
        load_pairs(path)
    assert caught.value.where == f"{path}{where}"
    assert what in caught.value.what


def test_csv_with_blank_lines_carriage_returns_and_a_huge_cell(tmp_path: Path) -> None:
    huge = "x, " * 400_000
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["query", " answer "], [], ["a", huge], ["", ""], ["b", "c"]])
    assert [pair.answer for pair in load_pairs(path)] == [huge, "c"]


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        ("[]", "", "is empty"),
        ('[{"query": "a", "answer": "b"}, 7]', ", record 2, field record", "should be an object"),
        ('[{"query": "a", "answer": "b"}', "", "broken JSON"),
        ('{"query": "a",\n "answer": "b"', ", line 1", "broken JSON"),
        ('{"n": 1,\n "data": [{}]}', "", "an array of records, such as its field 'data'"),
    ],
)
def test_a_damaged_array_is_named(tmp_path: Path, content: str, where: str, what: str) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        load_pairs(path)
    assert caught.value.where == f"{path}{where}"
    assert what in caught.value.what


def test_formats_that_are_only_read_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'\.csv'"):
        write_records([], tmp_path / "pairs.csv", pa.schema([]))
