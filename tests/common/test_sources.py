"""Converters of bAbI and SGD, and the corpus of each kind of source."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from common.config.data import BabiData, RowsData, SgdData, SynthData
from common.data.conversations import save_rows
from common.data.datasets import babi, sgd
from common.data.datasets.synth import generate
from common.data.datasets.table import load_corpus
from common.data.splits import conversation_hash
from common.data.validate import validate_rows
from common.episode import Fact, Interaction, Row
from common.failures import InputError

DIALOGUE = {
    "id": "1",
    "pairs": [
        ["hello", "what can I do?"],
        ["a table in San Jose for 2", "any food you like?"],
        ["pizza at 11:30 am", "I found one in San Jose"],
        ["good", "Confirming: 2 people in San Jose at 11:30 am, fish"],
        ["12 pm, still San Jose", "Confirming: 2 people in San Jose at 12 pm"],
    ],
    "confirms": [
        {
            "turn": 3,
            "facts": [
                {"slot": "city", "value": "San Jose", "said_in": 1},
                {"slot": "time", "value": "11:30 am", "said_in": 2},
                {"slot": "food", "value": "fish", "said_in": 2},  # never said
                {"slot": "price", "value": "cheap", "said_in": 1},  # not confirmed
            ],
        },
        # Both stand in the query itself.
        {
            "turn": 4,
            "facts": [
                {"slot": "time", "value": "12 pm", "said_in": 4},
                {"slot": "city", "value": "San Jose", "said_in": 1},
            ],
        },
    ],
}


def test_an_sgd_row_goes_from_the_first_telling_to_the_confirmation() -> None:
    (row,) = sgd.dialogue_rows(DIALOGUE)
    assert row == Row(
        "a table in San Jose for 2",
        "any food you like?",
        (
            Interaction("pizza at 11:30 am", "I found one in San Jose"),
            Interaction(
                "good",
                "Confirming: 2 people in San Jose at 11:30 am, fish",
                role="recall",
                # Said first in the opening, and again by the system one turn later.
                facts=(Fact("San Jose", 1), Fact("11:30 am", 1)),
            ),
        ),
    )


def test_sgd_files_give_rows_whose_values_are_literally_there(shared: Path, tmp_path: Path) -> None:
    rows = [each.row for each in sgd.load(shared / "data/sgd", "dev")]
    assert len(rows) > 900
    save_rows(rows, tmp_path / "dev.jsonl.gz")
    assert validate_rows(tmp_path / "dev.jsonl.gz")[:2] == (rows, [])


def test_a_broken_sgd_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sgd_compact_train.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"id": "1", "pairs": []}).encode()))
    with pytest.raises(InputError, match="line 1: is no dialogue"):
        sgd.load(tmp_path, "train")


def hashes(rows: list[Row]) -> set[str]:
    return {conversation_hash(row) for row in rows}


def test_the_babi_corpus_holds_out_by_hash_and_keeps_splits_apart(shared: Path) -> None:
    corpus = load_corpus(
        BabiData(folder=str(shared / "data/babi10k"), tasks=(1, 6), eval_fraction=0.05), 0
    )
    assert len(corpus.test) == 400
    assert 120 < len(corpus.eval) < 280
    stories = hashes(
        [
            story.row
            for task in (1, 6)
            for story in babi.load(shared / "data/babi10k", task, "train", 5)
        ]
    )
    whole = [row for row in corpus.train if conversation_hash(row) in stories]
    assert 3600 < len(whole) + len(corpus.eval) <= 4000
    assert len(corpus.train) > 2 * len(whole)  # and the parts that stand by themselves
    assert not hashes(corpus.train) & hashes(corpus.eval) | hashes(
        corpus.train + corpus.eval
    ) & hashes(corpus.test)
    single = load_corpus(BabiData(folder=str(shared / "data/babi10k"), max_questions=1), 0)
    assert not hashes(single.train) & hashes(single.test)


def test_the_sgd_corpus_never_divides_a_dialogue(shared: Path) -> None:
    folder = shared / "data/sgd"
    corpus = load_corpus(SgdData(folder=str(folder), max_follow_ups=4), 0)
    dialogue_of = {conversation_hash(each.row): each.dialogue for each in sgd.load(folder, "train")}
    train, held = (
        {dialogue_of[digest] for digest in hashes(rows)} for rows in (corpus.train, corpus.eval)
    )
    assert held
    assert len(train & held) <= 2  # the same words in two dialogues
    assert max(Counter(len(row.interactions) for row in corpus.train)) == 4


def test_own_rows_come_from_their_files(tmp_path: Path) -> None:
    rows = generate(SynthData(train=6, eval=2), 0)
    for split in ("train", "eval"):
        save_rows(rows[split], tmp_path / f"{split}.jsonl")
    (tmp_path / "texts.jsonl").write_text('{"text": "words"}\n')
    (tmp_path / "pairs.jsonl").write_text('{"query": "a", "answer": "b"}\n')
    data = RowsData(train=(str(tmp_path / "train.jsonl"),), eval=(str(tmp_path / "eval.jsonl"),))
    corpus = load_corpus(data, 0)
    train, held = (
        [replace(row, source=str(tmp_path / f"{split}.jsonl")) for row in rows[split]]
        for split in ("train", "eval")
    )
    assert (corpus.train, corpus.eval, corpus.test) == (train, held, [])
    assert corpus.pairs == [turn for row in rows["train"] for turn in row.turns]
    given = data.model_copy(
        update={
            "texts": (str(tmp_path / "texts.jsonl"),),
            "pairs": (str(tmp_path / "pairs.jsonl"),),
        }
    )
    corpus = load_corpus(given, 0)
    assert (corpus.texts, corpus.pairs) == (["words"], [Interaction("a", "b")])


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (BabiData(folder="nowhere", tasks=(3,)), "qa3_"),
        (SgdData(folder="nowhere"), "sgd_compact_train.jsonl.gz"),
        (
            RowsData(train=("nowhere/rows.jsonl",), eval=("nowhere/rows.jsonl",)),
            "nowhere/rows.jsonl",
        ),
    ],
)
def test_a_missing_file_is_named(data: BabiData | SgdData | RowsData, name: str) -> None:
    with pytest.raises(InputError, match="no such file") as caught:
        load_corpus(data, 0)
    assert name in caught.value.where
