"""Compared answers of other programs as preferences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.config.conversion import ComparedColumns, ComparedFiles
from common.data.datasets import compared
from common.data.datasets.compared import Compared, convert_preferences
from common.data.leftovers import Leftovers
from common.data.preferences import Preference, group_of, load_preferences, save_preferences
from common.data.readers import BadRecords
from common.data.transcripts import transcript_messages
from common.failures import InputError
from tests.common.test_file_formats import ENDINGS, save

HISTORY = (("My robot is Zib.", "Noted."),)
WANTED = Preference(
    "Who is it?", ("Zib.", "Nobody."), history=HISTORY, group=group_of(HISTORY, "Who is it?")
)
BEFORE = "\n\nHuman: My robot is Zib.\n\nAssistant: Noted.\n\nHuman: Who is it?\n\nAssistant:"


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


TALK = [
    message("user", "My robot is Zib."),
    message("assistant", "Noted."),
    message("user", "Who is it?"),
]
SHAPES: dict[str, dict[str, Any]] = {
    "transcripts": {"chosen": f"{BEFORE} Zib.", "rejected": f"{BEFORE} Nobody."},
    "transcript and answers": {"prompt": BEFORE, "chosen": "Zib.", "rejected": "Nobody."},
    "messages": {
        "chosen": [*TALK, message("assistant", "Zib.")],
        "rejected": [*TALK, message("assistant", "Nobody.")],
    },
    "messages beside their prompt": {
        "prompt": "Who is it?",
        "chosen": [*TALK, message("assistant", "Zib.")],
        "rejected": [*TALK, message("assistant", "Nobody.")],
    },
    "messages of a prompt": {
        "prompt": TALK,
        "chosen": [message("assistant", "Zib.")],
        "rejected": [message("assistant", "Nobody.")],
    },
    "messages and answers": {"prompt": TALK, "chosen": "Zib.", "rejected": "Nobody."},
    "sharegpt": {
        "chosen": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        "rejected": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "What?"}],
    },
}


def convert(*paths: Path, **settings: Any) -> tuple[Compared, dict[str, int]]:
    left = Leftovers()
    found = convert_preferences([str(path) for path in paths], ComparedFiles(**settings), left)
    return found, {what: count for what, count, _ in left.entries()}


def of_records(tmp_path: Path, *records: Any) -> tuple[list[Preference], dict[str, int]]:
    path = tmp_path / "told.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found, left = convert(path, eval_fraction=0)
    return found.train, left


def text(**more: Any) -> dict[str, Any]:
    return {"prompt": "Tea?", "chosen": "Yes, gladly.", "rejected": "No.", **more}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_in_every_format(tmp_path: Path, shape: str, ending: str) -> None:
    path = save(tmp_path / f"told.{ending}", [SHAPES[shape]])
    found, left = convert(path, eval_fraction=0)
    wanted = Preference("Hi", ("Hello", "What?"), group=group_of((), "Hi"))
    assert found.train == [wanted if shape == "sharegpt" else WANTED]
    assert left == {}
    save_preferences(found.train, tmp_path / "saved.jsonl")
    assert load_preferences(tmp_path / "saved.jsonl") == found.train


def test_answers_as_text_keep_brackets_and_speakers_inside(tmp_path: Path) -> None:
    (read,), _ = of_records(tmp_path, text(chosen="[1, 2]", rejected="As User: said,\nHuman: err"))
    assert read.answers == ("[1, 2]", "As User: said,\nHuman: err")


def test_a_speaker_after_a_blank_line_speaks_and_one_on_another_line_is_quoted() -> None:
    said = transcript_messages("Human: a\nAssistant: b\nHuman: c")
    assert [each["content"].strip() for each in said] == ["a", "b", "c"]
    said = transcript_messages("\n\nHuman: write a play\n\nAssistant: Bob\nHuman: hi\n\nHuman: ok")
    assert [each["content"].strip() for each in said] == ["write a play", "Bob\nHuman: hi", "ok"]
    assert [each["role"] for each in said] == ["human", "assistant", "human"]


@pytest.mark.parametrize(
    ("ratings", "margin"),
    [
        ({"score_chosen": 8.5, "score_rejected": 6}, 2.5),
        ({"chosen_score": -1, "rejected_score": -3}, 2.0),
        ({"chosen_rating": 5, "rejected_rating": 0}, 5.0),
        ({"margin": 0.25, "score_chosen": 8, "score_rejected": 6}, 0.25),
        ({}, 0.0),
    ],
)
def test_ratings_become_the_margin(
    tmp_path: Path, ratings: dict[str, float], margin: float
) -> None:
    (read,), left = of_records(tmp_path, text(**ratings))
    assert (read.margin, left) == (margin, {})


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (text(score_chosen=1, score_rejected=2), compared.REVERSED),
        (text(margin=-1), compared.REVERSED),
        (text(score_chosen=2, score_rejected=2), compared.TIED),
        (text(rejected=" Yes, gladly."), compared.ALIKE),
        (text(prompt=None), compared.UNASKED),
        (text(chosen=[message("assistant", None)]), compared.UNANSWERED),
        ({"chosen": f"{BEFORE} Zib.", "rejected": BEFORE}, compared.UNANSWERED),
        ({"chosen": BEFORE, "rejected": f"{BEFORE} Zib."}, compared.UNANSWERED),
        (
            {"chosen": f"{BEFORE} Zib.", "rejected": "\n\nHuman: Who?\n\nAssistant: Zib."},
            compared.PARTED,
        ),
        (text(), compared.REPEATED),
    ],
)
def test_what_is_no_preference_is_left_out_and_counted(
    tmp_path: Path, record: Any, what: str
) -> None:
    found, left = of_records(tmp_path, text(), record)
    assert len(found) == 1
    assert left == {what: 1}


def test_a_rating_without_the_other_gives_no_margin(tmp_path: Path) -> None:
    (read,), left = of_records(tmp_path, text(score_chosen=3))
    assert (read.margin, left) == (0.0, {compared.UNRATED: 1})


def test_nothing_left_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no preference is left: 1 answers that are alike"):
        of_records(tmp_path, text(rejected="Yes, gladly."))


def test_system_messages_are_counted_once(tmp_path: Path) -> None:
    said = [message("system", "Be kind."), message("user", "Tea?")]
    record = {
        "chosen": [*said, message("assistant", "Yes.")],
        "rejected": [*said, message("assistant", "No.")],
    }
    found, left = of_records(tmp_path, record)
    assert (found[0].prompt, left) == ("Tea?", {"system messages": 1})


@pytest.mark.parametrize(
    ("record", "field", "what"),
    [
        ([], "record", "should be an object"),
        (text(chosen=None), "chosen", "is missing; the record has prompt, chosen, rejected"),
        (text(rejected="  "), "rejected", "is empty"),
        (text(rejected=3), "rejected", "should be text or a list of messages"),
        (text(rejected=[]), "rejected", "should be text or a list of messages"),
        (text(chosen=[message("usr", "a")]), "chosen.0.role", "did you mean 'user'"),
        (text(score_chosen="high"), "score_chosen", "should be a number, not text"),
        (text(margin=1e9), "margin", "should be a number up to 1,000,000"),
        (text(group=["a"]), "group", "should be text"),
    ],
)
def test_damage_is_named_by_line_and_field(
    tmp_path: Path, record: Any, field: str, what: str
) -> None:
    path = tmp_path / "told.jsonl"
    path.write_text(json.dumps(text()) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(BadRecords) as caught:
        convert(path)
    assert caught.value.where == f"{path}, line 2, field {field}"
    assert what in caught.value.what


def test_columns_with_other_names(tmp_path: Path) -> None:
    record = {"question": "Tea?", "good": "Yes.", "bad": "No.", "stars": 5, "bad_stars": 2, "id": 1}
    path = save(tmp_path / "told.csv", [record])
    columns = ComparedColumns(
        prompt="question",
        chosen="good",
        rejected="bad",
        chosen_rating="stars",
        rejected_rating="bad_stars",
    )
    found, _ = convert(path, eval_fraction=0, columns=columns)
    assert (found.train[0].answers, found.train[0].margin) == (("Yes.", "No."), 3.0)


def test_groups_stay_in_one_split(tmp_path: Path) -> None:
    records = [text(prompt=f"Tea {i}?", chosen=f"Yes, {k}.") for i in range(50) for k in range(3)]
    found, _ = convert(save(tmp_path / "told.jsonl", records))
    held = {each.group for each in found.eval}
    assert 3 <= len(held) <= 20
    assert held.isdisjoint(each.group for each in found.train)
