"""Facts spread over many turns: what stands where, how far questions reach back, and what is left
out."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from common.config.generation import LongContext
from common.data.conversations import save_rows
from common.data.datasets.babi import conversation, stories
from common.data.datasets.dialogues import load_dialogues
from common.data.datasets.long_context import (
    CHANGED,
    CONTRADICTED,
    CUT,
    SAYS_VALUE,
    TOO_LONG,
    long_contexts,
    with_outdated,
)
from common.data.datasets.world import KINDS, long_talk
from common.data.leftovers import Leftovers
from common.data.splits import conversation_hash
from common.data.validate import validate_rows
from common.episode import Row
from common.failures import InputError
from common.text.values import contains_value

MOVES = """\
1 Mary moved to the hall.
2 John went to the attic.
3 Where is Mary? \thall\t1
4 Mary went back to the attic.
5 Where is Mary? \tattic\t4
6 John travelled to the cellar.
7 Where is John? \tcellar\t6
8 Where is Mary? \tattic\t4
"""
TALK = [
    ("how do you like the weather?", "it is fine"),
    ("I saw a film", "which one?"),
    ("it played in the attic", "how odd"),
    ("a " * 30, "that was long " * 10),
]


def made(seed: int = 0, **settings: Any) -> tuple[dict[str, list[Row]], Counter[str]]:
    left = Leftovers()
    rows = long_contexts(LongContext(**settings), seed, left)
    return rows, Counter({entry.what: entry.number for entry in left.entries()})


def topical(path: Path) -> str:
    said = [{"agent": f"agent_{i % 2}", "message": text} for i, text in enumerate(sum(TALK, ()))]
    path.write_text(json.dumps({"t_1": {"content": said}}))
    return str(path)


@pytest.fixture
def babi_file(tmp_path: Path) -> str:
    path = tmp_path / "qa1_moves_train.txt"
    path.write_text("".join(MOVES.replace("Mary", name) for name in ("Mary", "Sandra", "Fred")))
    return str(path)


def story_of(row: Row) -> list[tuple[str, str, str]]:
    return [(turn.query, turn.answer, turn.role) for turn in row.turns if turn.answer == "okay"] + [
        (turn.query, turn.answer, turn.role) for turn in row.turns if turn.facts
    ]


def test_generated_facts_stand_among_other_talk_and_keep_their_meaning(tmp_path: Path) -> None:
    rows, left = made(turns=(16, 256), train=6, eval=6)
    assert {name: len(held) for name, held in rows.items()} == {
        "train_16": 6, "eval_16": 6, "train_256": 6, "eval_256": 6,
    }  # fmt: skip
    assert not left
    for name, held in rows.items():
        for row in held:
            assert len(row.interactions) == int(name.split("_")[1])
            assert row.turns[-1].role == "recall"
            assert len(row.turns[-1].facts) == 1
        save_rows(held, tmp_path / f"{name}.jsonl")
        # Values stand where they are said to, last, and none is out of date.
        assert validate_rows(tmp_path / f"{name}.jsonl").warnings == []
    changed = [fact for row in rows["eval_256"] for turn in row.turns for fact in turn.facts]
    assert any(fact.outdated for fact in changed)
    told = [{conversation_hash(row) for row in rows[name]} for name in rows]
    assert all(first.isdisjoint(second) for first, second in pairwise(told))


def test_questions_reach_back_over_few_turns_and_over_many() -> None:
    rows, _ = made(turns=(512,), eval=40)
    reach = Counter(
        (index - fact.said_in).bit_length()
        for row in rows["eval_512"]
        for index, turn in enumerate(row.turns)
        for fact in turn.facts
    )
    # Up to 3 turns, up to 63, and more than 127: none of them is rare.
    assert sum(reach[bits] for bits in (1, 2)) > 10
    assert sum(reach[bits] for bits in (3, 4, 5, 6)) > 30
    assert sum(reach[bits] for bits in (8, 9, 10)) > 30


def test_the_same_seed_gives_the_same_conversations_and_another_one_others() -> None:
    settings = {"turns": (32,), "eval": 3}
    assert made(5, **settings) == made(5, **settings)
    assert made(5, **settings) != made(6, **settings)


def test_babi_stories_keep_their_order_and_list_what_changed(
    tmp_path: Path, babi_file: str
) -> None:
    talk = topical(tmp_path / "chats.json")
    rows, left = made(
        turns=(40,), eval=3, train=0, facts=(babi_file,), eval_facts=(babi_file,), talk=(talk,)
    )
    assert rows.keys() == {"eval_40"}
    assert [left[what] for what in (SAYS_VALUE, TOO_LONG)] == [1, 1]
    assert left[CHANGED] == 3 * 3 * 2, "three questions a story, three stories, read twice"
    for row, name in zip(rows["eval_40"], ("Mary", "Sandra", "Fred"), strict=True):
        assert len(row.turns) == 41
        spoken = [turn.query.replace(name, "Mary") for turn in row.turns if turn.role != "distract"]
        opening = row.turns[0].query.replace(name, "Mary")
        # The opening is told by its place; where it is other talk, the story begins after it.
        if opening in {query for query, _ in TALK}:
            spoken = spoken[1:]
        assert spoken == [
            "Mary moved to the hall. John went to the attic.",
            "Where is Mary?",
            "Mary went back to the attic.",
            "Where is Mary?",
            "John travelled to the cellar.",
            "Where is John?",
            "Where is Mary?",
        ]
        asked = [(turn, fact) for turn in row.turns for fact in turn.facts]
        assert [(fact.value, fact.outdated) for _, fact in asked] == [
            ("hall", ()),
            ("attic", ("hall",)),
            ("cellar", ("attic",)),
            ("attic", ("hall",)),
        ]
        for _, fact in asked:
            said = row.turns[fact.said_in]
            assert contains_value(f"{said.query} {said.answer}", fact.value)
        others = [turn.query for turn in row.turns if turn.role == "distract"]
        assert set(others) <= {query for query, _ in TALK[:2]}


def test_a_story_longer_than_the_turns_is_cut_to_its_questions_and_counted(babi_file: str) -> None:
    settings = {"facts": (babi_file,), "eval_facts": (babi_file,), "layout": "statement"}
    rows, left = made(turns=(4,), eval=3, **settings)
    assert left[f"{CUT} (4)"] == 3
    assert [[turn.answer for turn in row.turns if turn.facts] for row in rows["eval_4"]] == [
        ["hall", "attic"]
    ] * 3
    assert all(len(row.interactions) == 4 for row in rows["eval_4"])


def test_stories_that_contradict_themselves_are_left_out_by_name(tmp_path: Path) -> None:
    path = tmp_path / "qa1_x_train.txt"
    wrong = "1 Mary moved to the hall.\n2 Where is Mary? \thall\t1\n3 Where is Mary? \tattic\t1\n"
    path.write_text(wrong + MOVES)
    assert with_outdated(conversation(stories(path)[0], 5).row) is None
    left = Leftovers()
    files = (str(path),)
    rows = long_contexts(LongContext(turns=(16,), eval=2, facts=files, eval_facts=files), 0, left)
    assert len({story_of(row)[0] for row in rows["eval_16"]}) == 1
    assert (CONTRADICTED, 2, f"{path}, story 1") in left.entries()


def test_held_out_stories_are_not_trained_on(tmp_path: Path) -> None:
    names = [f"{first}{second}el" for first in "BCDFGHKLMN" for second in "aeiou"]
    path = tmp_path / "qa1_x_train.txt"
    path.write_text("".join(MOVES.replace("Mary", name) for name in names))
    rows, _ = made(turns=(12,), train=200, eval=50, facts=(str(path),))
    train, held = (
        {story_of(row)[-1][0] for row in rows[f"{split}_12"]} for split in ("train", "eval")
    )
    assert held
    assert train
    assert train.isdisjoint(held)
    assert len(train | held) == len(names)


def test_talk_of_which_nothing_is_left_is_refused(tmp_path: Path, babi_file: str) -> None:
    talk = topical(tmp_path / "chats.json")
    with pytest.raises(InputError, match=r"chats\.json: no turn is left"):
        made(facts=(babi_file,), talk=(talk,), max_words=2)
    with pytest.raises(InputError, match="there is no such file"):
        made(talk=(str(tmp_path / "none.json"),))


def test_generated_talk_says_no_value_of_the_world() -> None:
    values = {value for kind in KINDS for value in kind.values}
    said = " ".join(f"{query} . {answer} ." for query, answer in long_talk())
    assert [value for value in values if contains_value(said, value)] == []
    assert len(long_talk()) == len(set(long_talk())) > 200


def test_dialogues_are_read_from_published_formats(tmp_path: Path) -> None:
    left = Leftovers()
    (topic,) = load_dialogues(topical(tmp_path / "chats.json"), left)
    assert topic.pairs[:2] == tuple(TALK[:2])
    path = tmp_path / "persona.csv"
    path.write_text(
        "user 1 personas,user 2 personas,Best Generated Conversation\n"
        '"I bake.\nI sing.","I ride a horse.","A chat:\n*User 2:* Hi!\n* * *\nUser 1: Hello!\n'
        'and welcome\nUser 2: Bye"\n'
    )
    (persona,) = load_dialogues(str(path), left)
    assert persona.pairs == (("Hi!", "Hello! and welcome"),)
    assert persona.asker == ("I ride a horse.",)
    assert persona.answerer == ("I bake.", "I sing.")
    assert {entry.what: entry.number for entry in left.entries()} == {
        "lines of a dialogue before the first one that says who speaks": 1,
        "messages without an answer": 1,
    }
    path = tmp_path / "wrong.json"
    path.write_text('{"t_1": {"content": [{"agent": "a"}]}}')
    with pytest.raises(InputError, match=r"wrong\.json, t_1, message 1: should have `agent`"):
        load_dialogues(str(path), left)


def test_real_talk_is_read_whole(shared: Path) -> None:
    left = Leftovers()
    chats = load_dialogues(str(shared / "data/topical_chat/valid_freq.json"), left)
    assert len(chats) == 539
    path = shared / "data/persona_chat/synthetic_persona_chat_valid.csv"
    personas = load_dialogues(str(path), left)
    assert len(personas) == 1000
    assert all(each.asker and each.answerer for each in personas)
    assert min(len(each.pairs) for each in personas) >= 1
