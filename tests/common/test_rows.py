"""Rows between files and records, and what is said about bad ones."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from common.config.data import PreferencesData, RowsData, SynthData
from common.data.conversations import (
    load_pairs,
    load_rows,
    load_texts,
    row_from_dict,
    row_to_dict,
    save_rows,
    value_counts,
)
from common.data.datasets.files import preferences_corpus, rows_corpus
from common.data.datasets.synth import generate
from common.data.readers import BadRecords
from common.data.tokenizer import train_tokenizer
from common.data.validate import Limits, validate_rows
from common.episode import Fact, Interaction, Row
from common.failures import InputError

ROWS = generate(SynthData(train=20, eval=2), 0)["train"] + [
    Row(
        "a\u2028b",
        "c",
        (
            Interaction("d", "e", think="hm", role="distract"),
            Interaction("f", "g", facts=(Fact("a", 0, ("h",)),)),
        ),
        think="so",
        strategy="long_term",
    )
]


def good() -> dict[str, Any]:
    return {
        "query": "my dog is called Rex",
        "answer": "okay",
        "interactions": [
            {"query": "hello", "answer": "hi"},
            {
                "query": "what is my dog called?",
                "answer": "Rex",
                "role": "recall",
                "facts": [{"value": "Rex", "said_in": 0}],
            },
        ],
    }


def write(path: Path, *records: Any) -> Path:
    path.write_text(
        "".join(
            (record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records
        )
    )
    return path


def fault(path: Path, **options: Any) -> BadRecords:
    with pytest.raises(BadRecords) as caught:
        validate_rows(path, **options)
    assert "\n" not in str(caught.value)
    assert path.name in caught.value.where
    return caught.value


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_saved_rows_load_to_equal_rows(tmp_path: Path, name: str) -> None:
    save_rows(ROWS, tmp_path / "deeper" / name)
    assert load_rows(tmp_path / "deeper" / name) == ROWS
    assert [row_from_dict(row_to_dict(row)) for row in ROWS] == ROWS
    assert any(fact.outdated for row in ROWS for turn in row.interactions for fact in turn.facts)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    save_rows(ROWS, tmp_path / "a.jsonl.gz")
    save_rows(ROWS, tmp_path / "b.jsonl.gz")
    written = (tmp_path / "a.jsonl.gz").read_bytes()
    assert written == (tmp_path / "b.jsonl.gz").read_bytes()
    assert written[4:8] == bytes(4)  # RFC 1952: no time of writing


def test_an_interaction_with_facts_and_no_role_is_a_recall() -> None:
    record = good()
    del record["interactions"][1]["role"]
    assert [turn.role for turn in row_from_dict(record).interactions] == ["act", "recall"]
    assert row_from_dict(record).interactions[1].facts == (Fact("Rex", 0),)
    assert value_counts([row_from_dict(record)] * 2) == {"Rex": 2}


def broken(*path: str | int, value: Any = None, rename: str | None = None) -> dict[str, Any]:
    record = good()
    spot: Any = record
    for part in path[:-1]:
        spot = spot[part]
    if rename:
        spot[rename] = spot.pop(path[-1])
    elif value is None:
        del spot[path[-1]]
    else:
        spot[path[-1]] = value
    return record


FACT = ("interactions", 1, "facts", 0)


@pytest.mark.parametrize(
    ("record", "field", "what"),
    [
        (broken("answer", rename="anwser"), "anwser", "did you mean 'answer'"),
        (
            broken("interactions", 0, "query", rename="qery"),
            "interactions.0.qery",
            "did you mean 'query'",
        ),
        (broken("answer"), "answer", "is missing"),
        (broken("query", value=7), "query", "should be text, not a whole number"),
        (broken("interactions", value="x"), "interactions", "should be a list, not text"),
        (broken("interactions", value=[]), "interactions", "at least one follow-up"),
        (broken("interactions", 0, value="hello"), "interactions.0", "should be an object"),
        (broken("interactions", 0, "query", value="  "), "interactions.0.query", "is empty"),
        (broken("interactions", 0, "answer", value=""), "interactions.0.answer", "is empty"),
        (
            broken("interactions", 0, "role", value="recal"),
            "interactions.0.role",
            "did you mean 'recall'",
        ),
        (broken("strategy", value="longterm"), "strategy", "did you mean 'long_term'"),
        (broken(*FACT, "said_in", value=2), "interactions.1.facts.0.said_in", "0 to 1"),
        (broken(*FACT, "said_in", value=-1), "interactions.1.facts.0.said_in", "0 to 1"),
        (
            broken(*FACT, "said_in", value=True),
            "interactions.1.facts.0.said_in",
            "should be a whole number, not true",
        ),
        (
            broken(*FACT, "said_in", value=1),
            "interactions.1.facts.0.said_in",
            "is 1, where 'Rex' was never said: turn 0",
        ),
        (broken(*FACT, "value", value="Re"), "interactions.1.facts.0.value", "'Re' was never said"),
        (broken(*FACT, "value", value=" \u200b"), "interactions.1.facts.0.value", "is empty"),
        (
            broken(*FACT, "outdated", value="Max"),
            "interactions.1.facts.0.outdated",
            "should be a list",
        ),
        (
            broken(*FACT, "outdated", value=[3]),
            "interactions.1.facts.0.outdated.0",
            "should be text",
        ),
        (
            broken(*FACT, "outdated", value=["Rex"]),
            "interactions.1.facts.0.outdated.0",
            "is the value itself",
        ),
        ([1], "record", "should be an object with query, answer, interactions"),
        ('{"query": "a", [', None, "broken JSON"),
    ],
)
def test_a_bad_row_is_named_by_line_and_field(
    tmp_path: Path, record: Any, field: str | None, what: str
) -> None:
    path = write(tmp_path / "rows.jsonl", good(), "", record)
    error = fault(path)
    assert what in error.what
    assert error.where == f"{path}, line 3" + (f", field {field}" if field else "")
    if "never said" not in what:
        with pytest.raises(InputError) as loading:
            load_rows(path)
        assert str(loading.value) == str(error)


def test_values_that_only_follow_from_what_was_said_load_and_pass_on_request(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "rows.jsonl", broken(*FACT, "value", value="yes"))
    assert len(load_rows(path)) == len(validate_rows(path, literal=False).rows) == 1


def test_all_faults_are_reported_up_to_twenty(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *[broken("answer", value=" ")] * 3, good())
    error = fault(path)
    assert [each.where for each in error.faults] == [
        f"{path}, line {n}, field answer" for n in (1, 2, 3)
    ]
    assert "and 2 more" in error.what
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert len(fault(write(path, *["{"] * 50)).faults) == 20


def test_an_answer_over_the_limit_is_named(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["my dog is called Rex"], 300)
    path = write(tmp_path / "rows.jsonl", broken("interactions", 0, "answer", value="x" * 30))
    assert len(validate_rows(path, Limits(answer_tokens=40), tokenizer).rows) == 1
    error = fault(path, limits=Limits(answer_tokens=10), tokenizer=tokenizer)
    assert error.where.endswith("field interactions.0.answer")
    assert "10 are allowed" in error.what


def test_an_interaction_over_the_limit_is_named_with_its_tokens(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["my dog is called Rex"], 300)
    path = write(tmp_path / "rows.jsonl", good(), broken("query", value="my dog " * 20 + "is Rex"))
    tokens = max(len(tokenizer.interaction(turn)) for row in load_rows(path) for turn in row.turns)
    assert len(validate_rows(path, Limits(tokens=tokens), tokenizer).rows) == 2
    error = fault(path, limits=Limits(tokens=tokens - 1), tokenizer=tokenizer)
    assert error.where == f"{path}, line 2, field query"
    assert error.what.startswith(f"has {tokens} tokens with its answer, {tokens - 1} are allowed")
    assert "engram data divide" in error.what
    path = write(path, broken("interactions", 0, "query", value="my dog " * 20 + "is who?"))
    asked = fault(path, limits=Limits(tokens=tokens - 2), tokenizer=tokenizer)
    assert asked.where.endswith("field interactions.0.query")
    assert "engram data divide" not in asked.what


def test_a_conversation_that_never_ends_is_refused_by_line_and_counted(tmp_path: Path) -> None:
    endless = {"query": "go on", "answer": "okay"}
    long = broken("interactions", value=[endless] * 9)
    path = write(tmp_path / "rows.jsonl", good(), long, long)
    assert len(load_rows(path)) == len(load_rows(path, max_follow_ups=9)) == 3
    with pytest.raises(BadRecords) as caught:
        load_rows(path, max_follow_ups=8)
    what = f"{path}, line 2, field interactions: has 9 follow-ups, 8 are allowed"
    assert str(caught.value).startswith(f"{what}: does")
    assert "(and 1 more)" in caught.value.what
    validated = fault(path, limits=Limits(follow_ups=8))
    assert str(validated).startswith(f"{what} (--max-follow-ups): does")
    data = RowsData(train=(str(path),), eval=(str(path),), max_follow_ups=8)
    with pytest.raises(BadRecords) as refused:
        rows_corpus(data, 0)
    assert str(refused.value).startswith(f"{what} (data.max_follow_ups): does")


def test_data_without_a_limit_of_their_own_name_no_setting_that_they_lack(tmp_path: Path) -> None:
    endless = {"query": "go on", "answer": "okay"}
    path = write(tmp_path / "rows.jsonl", broken("interactions", value=[endless] * 4097))
    preferred = write(tmp_path / "p.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"})
    data = PreferencesData(train=(str(preferred),), conversations=(str(path),))
    with pytest.raises(BadRecords, match=r"4,097 follow-ups, 4,096 are allowed: does"):
        preferences_corpus(data, 0)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.jsonl.gz"])
def test_an_empty_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"\n") if name.endswith("gz") else b"")
    assert "is empty" in fault(tmp_path / name).what


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("absent.jsonl", None, "no such file"),
        ("rows.tsv", b"a,b", "'.tsv'"),
        ("rows.parquet", b"not parquet", "Parquet"),
        ("rows.jsonl.gz", b"not gzip", "gzip"),
        ("rows.jsonl", b"\xff\xfe", "UTF-8"),
    ],
)
def test_an_unreadable_file_is_named(
    tmp_path: Path, name: str, content: bytes | None, what: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name) as caught:
        load_rows(tmp_path / name)
    assert what in caught.value.what


def test_parquet_faults_count_rows(tmp_path: Path) -> None:
    save_rows([ROWS[0], Row("", "b", ROWS[0].interactions)], tmp_path / "rows.parquet")
    assert fault(tmp_path / "rows.parquet").where.endswith("row 2, field query")


def test_an_unknown_name_of_datasets_is_bad_input() -> None:
    with pytest.raises(InputError, match="neither a file nor a data set"):
        load_rows("nobody/nothing:subset:train")


def test_pairs_come_from_fields_and_from_template_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "pairs.jsonl",
        {"query": "a", "answer": "b"},
        {"text": "[Q] two\nlines [A] answer"},
        {"text": "[BOS][Q]q[T]hm[A]a[EOS]"},
    )
    assert load_pairs(path) == [
        Interaction("a", "b"),
        Interaction("two\nlines", "answer"),
        Interaction("q", "a", think="hm"),
    ]
    for bad in (
        {"text": "no template"},
        {"text": "[Q] [A] x"},
        {"query": "a"},
        {"query": "a", "anser": "b"},
    ):
        with pytest.raises(InputError, match="line 1"):
            load_pairs(write(path, bad))


def test_texts_come_from_their_field(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", {"text": "one"}, {"text": "two"})
    assert load_texts(path) == ["one", "two"]
    with pytest.raises(InputError, match="did you mean 'text'"):
        load_texts(write(path, {"txt": "one"}))
