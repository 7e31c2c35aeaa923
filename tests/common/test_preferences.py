"""Preferences in files, and the public data sets that become them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from common.data.datasets.ranked import (
    FOLDS,
    Judged,
    interactions,
    load_instructions,
    load_taskmaster,
    parts,
)
from common.data.preferences import (
    Preference,
    load_preferences,
    recall_preferences,
    save_preferences,
    without_answers_to,
)
from common.data.readers import BadRecords
from common.episode import Interaction, Row
from common.failures import InputError
from tests.local_preferences import preferences
from tests.local_source import tiny_corpus


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet"])
def test_what_was_saved_is_loaded(tmp_path: Path, ending: str) -> None:
    told = [*preferences(4, margin=0.5), *preferences(3, seed=1, answers=3)]
    save_preferences(told, tmp_path / f"told.{ending}")
    assert load_preferences(tmp_path / f"told.{ending}") == told


def test_records_without_a_group_are_grouped_by_history_and_prompt(tmp_path: Path) -> None:
    pair = {"prompt": "tea?", "chosen": "yes", "rejected": "no"}
    other = pair | {"chosen": "gladly", "rejected": "never"}
    history = [{"query": "hi", "answer": "hello"}]
    (tmp_path / "told.jsonl").write_text(
        "\n".join(map(json.dumps, [pair, other, pair | {"history": history}]))
    )
    first, second, third = (each.group for each in load_preferences(tmp_path / "told.jsonl"))
    assert first == second != third


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (
            {"prompt": "a", "chosen": "b", "rejectedd": "c"},
            "field rejectedd: is no field of this record; did you mean 'rejected'",
        ),
        ({"prompt": "a", "chosen": "b"}, "field rejected: is missing"),
        ({"prompt": " ", "chosen": "b", "rejected": "c"}, "field prompt: is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "field rejected: is an answer twice"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"},
            "field margin: should be a number, not text",
        ),
        (
            {"prompt": "a", "answers": ["b"]},
            "field answers: holds 1: a preference takes two at least",
        ),
        ({"prompt": "a", "answers": ["b", 3]}, "field answers.1: should be a text"),
        (
            {"prompt": "a", "answers": ["b", "c", "d"], "margin": 1.0},
            "field margin: goes with one chosen and one rejected",
        ),
        (
            {"prompt": "a", "answers": ["b", "c"], "chosen": "b"},
            "field chosen: should be left out, not text",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "history": [{"query": "x"}]},
            "field history.0.answer: is missing",
        ),
    ],
)
def test_a_bad_record_is_named_with_its_line_and_field(
    tmp_path: Path, record: dict[str, Any], fault: str
) -> None:
    path = tmp_path / "told.jsonl"
    path.write_text(
        json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n" + json.dumps(record)
    )
    with pytest.raises(BadRecords) as bad:
        load_preferences(path)
    assert f"{path}, line 2, {fault}" in str(bad.value)


def test_turns_become_what_the_agent_was_told_and_what_it_did() -> None:
    turns = [
        {"role": "agent", "text": "Welcome."},
        {"role": "user", "text": "Two teas"},
        {"role": "agent", "api": {"get_menu": {"query": "tea"}}},
        {
            "role": "api",
            "response": {"get_menu": {"items": [{"id": "t1", "name": "Tea"}, {"id": "t2"}]}},
        },
        {"role": "agent", "text": "Which one?"},
        {"role": "agent", "text": ""},
        {"role": "user", "text": "The first"},
    ]
    assert interactions(turns) == [
        ("Two teas", "get_menu(query: tea)"),
        ("get_menu(items: id: t1, name: Tea; id: t2)", "Which one?"),
        ("The first", ""),
    ]


def test_good_and_bad_actions_of_one_context_make_pairs(tmp_path: Path) -> None:
    context = json.dumps([{"role": "user", "text": "Two teas"}])
    said = [
        ("text", "Gladly", 1.0),
        ("text", "No", 0.0),
        ("text", "Never", 0.0),
        ("text", "Maybe", 1.0),
        ("text", "Maybe", 0.0),
    ]
    records = [
        {
            "conversation_id": "c",
            "context": context,
            "generation": json.dumps({"role": "agent", kind: text}),
            "reward": reward,
        }
        for kind, text, reward in said
    ]
    (tmp_path / "tm3_reward_00.json.gz").write_bytes(gzip.compress(json.dumps(records).encode()))
    (judged,) = load_taskmaster(tmp_path)
    assert judged.rows == [], "nothing was said before"
    assert judged.preferences == [
        Preference("Two teas", ("Gladly", bad), group="c") for bad in ("No", "Never")
    ]  # Maybe was judged both ways


def test_files_that_are_not_there_or_something_else_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no tm"):
        load_taskmaster(tmp_path)
    with pytest.raises(InputError, match="there is no such file"):
        load_instructions(tmp_path)
    (tmp_path / "instruction-data-with-preference.json").write_text(
        '[{"instruction": "a", "input": ""}]'
    )
    with pytest.raises(InputError, match="record 1: lacks a field: 'chosen'"):
        load_instructions(tmp_path)


def test_the_public_files_give_what_they_are_known_to_hold(shared: Path) -> None:
    judged = load_taskmaster(shared / "data" / "taskmaster_reward")
    taskmaster = [preference for each in judged for preference in each.preferences]
    assert (len(taskmaster), len({each.group for each in taskmaster})) == (639, 230)
    assert len(load_instructions(shared / "data" / "rasbt_instruction")) == 1094


def test_every_group_is_in_the_test_part_of_one_fold_and_taught_by_the_others() -> None:
    judged = [
        Judged(f"talk {i // 2}", (("hi", "hello"),), f"prompt {i}", ("good",), ("bad", "worse"))
        for i in range(80)
    ]
    every = [preference for each in judged for preference in each.preferences]
    folds = [parts(every, judged, fold) for fold in range(FOLDS)]
    for each in folds:
        assert len(each.train) + len(each.test) == len(every)
        tested = {preference.group for preference in each.test}
        assert 0 < len(tested) < 20
        assert tested.isdisjoint(preference.group for preference in each.train)
        taught = {row.turns[-1].query for row in each.conversations}
        assert taught == {preference.prompt for preference in each.train}
        assert taught.isdisjoint(preference.prompt for preference in each.test)
    tested_once = [preference.prompt for each in folds for preference in each.test]
    assert sorted(tested_once) == sorted(preference.prompt for preference in every)


def test_only_memory_tells_the_answers_of_recall_preferences_apart() -> None:
    rows = tiny_corpus().train
    found = recall_preferences(rows, 0)
    assert len(found) > 10
    right_elsewhere = {(turn.query, turn.answer) for row in rows for turn in row.interactions}
    for each in found:
        chosen, rejected = each.answers
        assert (each.prompt, chosen) in right_elsewhere
        assert (each.prompt, rejected) in right_elsewhere, (
            "the wrong answer is the right one of another conversation"
        )
        assert chosen != rejected
    assert recall_preferences(rows, 0) == found != recall_preferences(rows, 1)


def test_conversations_that_answer_a_held_out_prompt_are_left_out() -> None:
    held = Preference("tea?", ("yes", "no"), history=(("hi", "hello"),))
    opening = Interaction("hi", "hello")
    same, other_history, longer, not_asked = (
        Row(first.query, first.answer, tuple(Interaction(query, "yes") for query in queries))
        for first, queries in (
            (opening, ["tea?"]), (Interaction("hey", "hello"), ["tea?"]),
            (opening, ["tea?", "milk?"]), (opening, ["milk?", "tea?"]),
        )
    )  # fmt: skip
    assert without_answers_to([same, other_history, longer, not_asked], [held]) == [
        other_history,
        not_asked,
    ]
