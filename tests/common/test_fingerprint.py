"""The data of a run are known again, whatever file they lie in, and what differs is said in a
sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.config.data import PreferencesData, RowsData, SynthData
from common.data.conversations import save_rows
from common.data.datasets.table import load_corpus
from common.data.fingerprint import (
    Source,
    fingerprint,
    from_json,
    plain,
    require_same_data,
    to_json,
)
from common.data.preferences import Preference, save_preferences
from common.episode import Fact, Interaction, Row
from common.failures import InputError

TALKS = [
    Row(
        f"I live in {city}",
        "okay",
        (Interaction("where do I live?", city, role="recall", facts=(Fact(city, 0),)),),
    )
    for city in ("Oslo", "Lima", "Rome", "Bern", "Cairo")
]


def parts(rows: list[Row], name: str = "talks.jsonl") -> Any:
    return fingerprint([Source("data.train", name, "conversations", rows)])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda rows: rows[:2],
            r"^data\.train: talks\.jsonl has 2 conversations, the run was started with 5; put "
            r"the data of runs/a back",
        ),
        (lambda rows: rows[:1], "has 1 conversation, the run was started with 5"),
        (
            lambda rows: rows[::-1],
            "has the 5 conversations that the run was started with in another order",
        ),
        (
            lambda rows: [replace(rows[0], answer="Okay"), *rows[1:]],
            "has 5 conversations, but not those that the run was started with",
        ),
        (lambda rows: [rows[0], *rows[:4]], "has 5 conversations, but not those"),
        (
            lambda rows: [replace(rows[0], strategy="single"), *rows[1:]],
            "has 5 conversations, but not those",
        ),
        (
            lambda rows: [
                *rows[:4],
                replace(rows[4], interactions=(replace(rows[4].interactions[0], facts=()),)),
            ],
            "has 5 conversations, but not those",
        ),
    ],
)
def test_whatever_differs_is_found_and_said(
    change: Callable[[list[Row]], list[Row]], what: str
) -> None:
    require_same_data(parts(TALKS), parts(TALKS), "runs/a")
    with pytest.raises(InputError, match=what):
        require_same_data(parts(change(TALKS)), parts(TALKS), "runs/a")


def test_a_source_that_came_or_went_is_named() -> None:
    one, both = parts(TALKS), [*parts(TALKS), *parts(TALKS[:3], "more.jsonl")]
    with pytest.raises(InputError, match=r"more\.jsonl \(3 conversations\) was not among the data"):
        require_same_data(both, one, "runs/a")
    with pytest.raises(
        InputError, match=r"more\.jsonl \(3 conversations\) is missing from the data"
    ):
        require_same_data(one, both, "runs/a")


def test_it_survives_its_file_and_a_broken_one_is_found() -> None:
    assert from_json(to_json(parts(TALKS))) == parts(TALKS)
    for broken in ({}, {"parts": [{"count": 3}]}, [], {"parts": None}):
        with pytest.raises(ValueError, match="lacks"):
            from_json(broken)


def test_fields_at_their_default_do_not_count() -> None:
    assert plain(TALKS[0]) == {
        "query": "I live in Oslo",
        "answer": "okay",
        "interactions": [
            {
                "query": "where do I live?",
                "answer": "Oslo",
                "role": "recall",
                "facts": [{"value": "Oslo", "said_in": 0}],
            }
        ],
    }


def test_rows_are_the_same_in_any_format_and_every_file_counts(tmp_path: Path) -> None:
    for name in ("talks.jsonl", "talks.jsonl.gz", "talks.parquet", "held.jsonl"):
        save_rows(TALKS if name != "held.jsonl" else TALKS[:2], tmp_path / name)
    (tmp_path / "book.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')

    def read(train: str, **more: Any) -> Any:
        return fingerprint(
            load_corpus(
                RowsData(train=(f"{tmp_path}/{train}",), eval=(f"{tmp_path}/held.jsonl",), **more),
                0,
            ).sources
        )

    first = read("talks.jsonl")
    assert [(part.setting, part.name, part.amount) for part in first] == [
        ("data.train", f"{tmp_path}/talks.jsonl", "5 conversations"),
        ("data.eval", f"{tmp_path}/held.jsonl", "2 conversations"),
    ]
    for name in ("talks.jsonl.gz", "talks.parquet"):
        require_same_data(read(name), first, "runs/a")
    book = read("talks.jsonl", texts=(f"{tmp_path}/book.jsonl",))
    assert (book[2].setting, book[2].amount) == ("data.texts", "2 texts")


def test_preferences_and_generated_data_have_one_too(tmp_path: Path) -> None:
    told = [Preference(f"what is {i}?", (f"it is {i}", "no idea")) for i in range(8)]
    save_preferences(told, tmp_path / "told.jsonl")
    save_rows(TALKS, tmp_path / "talks.jsonl")
    data = PreferencesData(
        train=(f"{tmp_path}/told.jsonl",),
        conversations=(f"{tmp_path}/talks.jsonl",),
        eval_fraction=0.4,
    )
    found = fingerprint(load_corpus(data, 0).sources)
    assert [(part.setting, part.amount) for part in found] == [
        ("data.train", "8 preferences"),
        ("data.conversations", "5 conversations"),
    ]
    small = SynthData(train=30, eval=5)
    made = fingerprint(load_corpus(small, 3).sources)
    assert [(part.name, part.count) for part in made] == [("split train", 30), ("split eval", 5)]
    assert made == fingerprint(load_corpus(small, 3).sources)
    with pytest.raises(InputError, match="data: split train has 30 conversations, but not those"):
        require_same_data(fingerprint(load_corpus(small, 4).sources), made, "runs/a")
