"""bAbI stories as conversations: what a question needs, when its value was last said, and which
parts stand by themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from common.config.data import Layout
from common.data.conversations import row_from_dict, row_to_dict
from common.data.datasets import babi
from common.data.datasets.babi import Story
from common.episode import Fact, Interaction, Row
from common.failures import InputError
from common.text.values import contains_value

# --- what the statements of the tasks on persons, places and things make true ---------------------

MOVE = re.compile(r"(\w+) (?:moved|went|travelled|journeyed)(?: back)? to the (\w+)")
TAKE = re.compile(r"(\w+) (?:got|took|grabbed|picked up) the (\w+)")
DROP = re.compile(r"(\w+) (?:dropped|left|discarded|put down) the (\w+)")
GIVE = re.compile(r"(\w+) (?:gave|handed|passed) the (\w+) to (\w+)")
COUNTS = ("none", "one", "two", "three")


def answer_from(statements: Iterable[str], question: str) -> set[str]:
    """The answer that follows from these statements alone; empty where it does not follow."""
    place: dict[str, str] = {}
    held: dict[str, list[str]] = {}
    left: dict[str, str] = {}
    for text in statements:
        if move := MOVE.match(text):
            place[move[1]] = move[2]
        elif gave := GIVE.match(text):
            held[gave[1]] = [thing for thing in held.get(gave[1], []) if thing != gave[2]]
            held.setdefault(gave[3], []).append(gave[2])
        elif take := TAKE.match(text):
            held.setdefault(take[1], []).append(take[2])
            left.pop(take[2], None)
        elif drop := DROP.match(text):
            held[drop[1]] = [thing for thing in held.get(drop[1], []) if thing != drop[2]]
            left[drop[2]] = place.get(drop[1], "")
        else:
            raise AssertionError(f"no statement of these tasks: {text!r}")
    if asked := re.fullmatch(r"Where is the (\w+)\?", question):
        carried = [place.get(person, "") for person, things in held.items() if asked[1] in things]
        return {*carried} or {left.get(asked[1], "")}
    if asked := re.fullmatch(r"Where is (\w+)\?", question):
        return {place.get(asked[1], "")}
    if asked := re.fullmatch(r"Is (\w+) in the (\w+)\?", question):
        return {"yes" if place[asked[1]] == asked[2] else "no"} if asked[1] in place else {""}
    if asked := re.fullmatch(r"What is (\w+) carrying\?", question):
        return {*held.get(asked[1], [])} or {"nothing"}
    asked = re.fullmatch(r"How many objects is (\w+) carrying\?", question)
    assert asked is not None, question
    return {COUNTS[len(held.get(asked[1], []))]}


def statements_of(turns: Iterable[Interaction]) -> list[str]:
    return [
        text
        for turn in turns
        if turn.role == "remember"
        for text in re.findall(r"[^.]+\.", turn.query)
    ]


def distances(row: Row) -> Iterator[tuple[str, str, int]]:
    """(question, value, turns since it was said)."""
    for index, turn in enumerate(row.turns):
        for fact in turn.facts:
            yield turn.query, fact.value, index - fact.said_in


def guesses(row: Row) -> list[Interaction]:
    """Questions of a row whose answer does not follow from the row itself."""
    wrong = []
    for index, turn in enumerate(row.turns):
        told = [text.strip() for text in statements_of(row.turns[:index])]
        if turn.role == "recall" and answer_from(told, turn.query) != set(turn.answer.split(", ")):
            wrong.append(turn)
    return wrong


# --- stories written here -------------------------------------------------------------------------

THINGS = """\
1 Fred got the lamp there.
2 Julie moved to the cellar.
3 Where is Julie? \tcellar\t2
4 Fred went to the attic.
5 Fred put down the lamp.
6 Where is the lamp? \tattic\t5 4
7 Julie journeyed to the attic.
8 Fred went back to the cellar.
9 Where is the lamp? \tattic\t5 4
10 Julie took the lamp there.
11 Where is the lamp? \tattic\t10 7
12 Where is Fred? \tcellar\t8
1 Bill took the key there.
2 What is Bill carrying? \tkey\t1
3 Bill got the rope there.
4 Julie travelled to the attic.
5 What is Bill carrying? \tkey,rope\t1 3
6 Bill dropped the key there.
7 What is Bill carrying? \trope\t1 3 6
8 Bill grabbed the key.
9 Bill left the rope.
10 What is Bill carrying? \tkey\t1 3 6 8 9
11 What is Julie carrying? \tnothing\t4
1 Julie went to the attic.
2 Bill went to the hall.
3 Is Julie in the cellar? \tno\t1
4 Julie went back to the cellar.
5 Is Julie in the cellar? \tyes\t4
6 Julie moved to the hall.
7 Fred moved to the hall.
8 Is Julie in the cellar? \tno\t6
9 Is Julie in the cellar? \tno\t6
10 Is Bill in the hall? \tyes\t2
"""


@pytest.fixture
def written(tmp_path: Path) -> list[Story]:
    (tmp_path / "qa2_things_train.txt").write_text(THINGS)
    return babi.load(tmp_path, 2, "train", max_questions=5)


def test_statement_blocks_and_questions_are_turns_of_their_own(written: list[Story]) -> None:
    _, carried, place = written
    assert carried.row.turns[:4] == (
        Interaction("Bill took the key there.", "okay", role="remember"),
        Interaction("What is Bill carrying?", "key", role="recall", facts=(Fact("key", 0),)),
        Interaction(
            "Bill got the rope there. Julie travelled to the attic.", "okay", role="remember"
        ),
        Interaction(
            "What is Bill carrying?",
            "key, rope",
            role="recall",
            facts=(Fact("key", 1), Fact("rope", 2)),
        ),
    )
    assert place.row.interactions[0] == Interaction(
        "Is Julie in the cellar?", "no", role="recall", facts=(Fact("no", 0),)
    )
    assert carried.support[:4] == (frozenset(), {0}, frozenset(), {0, 2})


def test_each_statement_may_be_a_turn_of_its_own(tmp_path: Path, written: list[Story]) -> None:
    (tmp_path / "qa2_things_train.txt").write_text(THINGS)
    things, carried, _ = babi.load(tmp_path, 2, "train", 5, layout="statement")
    assert [(turn.role, turn.query) for turn in carried.row.turns[:5]] == [
        ("remember", "Bill took the key there."),
        ("recall", "What is Bill carrying?"),
        ("remember", "Bill got the rope there."),
        ("remember", "Julie travelled to the attic."),
        ("recall", "What is Bill carrying?"),
    ]
    assert carried.row.turns[4].facts == (Fact("key", 1), Fact("rope", 2))
    assert carried.support[4] == {0, 2}
    assert [(value, distance) for _, value, distance in distances(things.row)] == [
        ("cellar", 1), ("attic", 2), ("attic", 3), ("attic", 2), ("cellar", 4),
    ]  # fmt: skip
    # The same parts as of blocks, each told in more turns.
    blocks = [babi.windows(story) for story in written]
    for story, parts in zip((things, carried), blocks, strict=False):
        assert guesses(story.row) == []
        told = [" ".join(statements_of(part.turns)) for part in babi.windows(story)]
        assert told == [
            " ".join(text.strip() for text in statements_of(part.turns)) for part in parts
        ]


def test_a_task_without_a_file_is_named_with_those_that_have_one(tmp_path: Path) -> None:
    for task in (2, 10, 1):
        (tmp_path / f"qa{task}_x_train.txt").write_text("1 Mary moved.\n")
    with pytest.raises(InputError, match=r"qa3_\*_train.*no such file; tasks 1, 2, 10 have one"):
        babi.load(tmp_path, 3, "train", 5)


def test_the_last_question_kept_is_the_one_asked_for(tmp_path: Path) -> None:
    (tmp_path / "qa2_things_train.txt").write_text(THINGS)
    cut = babi.load(tmp_path, 2, "train", max_questions=2)
    assert [[turn.query for turn in story.row.turns if turn.facts][-1] for story in cut] == [
        "Where is the lamp?",
        "What is Bill carrying?",
        "Is Julie in the cellar?",
    ]
    assert [story.row.strategy for story in babi.load(tmp_path, 2, "train", max_questions=1)] == [
        "single"
    ] * 3


def test_distance_counts_from_the_last_time_the_value_was_said(written: list[Story]) -> None:
    """By a statement that says it or an answer to the same question; not by an answer about
    another, nor by one that went wrong since."""
    lamp, bill = "Where is the lamp?", "What is Bill carrying?"
    said = [list(distances(story.row)) for story in written]
    assert said[0] == [
        ("Where is Julie?", "cellar", 1),
        (lamp, "attic", 1),
        (lamp, "attic", 2),  # the answer before; that Julie went to the attic is about Julie
        (lamp, "attic", 2),  # the same; who took it there is the last support, and says no place
        ("Where is Fred?", "cellar", 4),
    ]
    assert said[1] == [
        (bill, "key", 1),
        (bill, "key", 2),
        (bill, "rope", 1),
        (bill, "rope", 2),
        (bill, "key", 1),  # not the answer two questions ago: it was dropped since
        ("What is Julie carrying?", "nothing", 6),
    ]
    assert [distance for *_, distance in said[2]] == [1, 1, 1, 1, 7]


def test_parts_and_reading_pairs_can_be_answered_from_themselves(written: list[Story]) -> None:
    for story in written:
        assert guesses(story.row) == []
        assert [guesses(part) for part in babi.windows(story)] == [[] for _ in babi.windows(story)]
    first, second, third = (babi.windows(story) for story in written)
    # From where Julie goes to the attic on, nobody said where the lamp is; where she takes it,
    # nobody said where she is.
    assert [(part.query, len(part.turns)) for part in first] == [
        ("Fred went to the attic. Fred put down the lamp.", 7)
    ]
    assert second == []  # the key was taken first of all
    assert [len(part.turns) for part in third] == [5, 3]  # without the question about Bill
    assert [distance for part in third for *_, distance in distances(part)] == [1, 1, 1, 1, 1]
    pairs = [[(pair.query, pair.answer) for pair in babi.reading_pairs(story)] for story in written]
    assert pairs[0] == [
        ("Fred got the lamp there. Julie moved to the cellar. Where is Julie?", "cellar"),
        ("Fred went to the attic. Fred put down the lamp. Where is the lamp?", "attic"),
    ]
    assert pairs[1] == [("Bill took the key there. What is Bill carrying?", "key")]


BROKEN = [
    "Mary moved.",
    "2 Mary moved.",
    "1 Where is Mary?\tbathroom",
    "1 ",
    "1 Where is Mary?\tbathroom\t1",
    "1 Where is Mary?\thall\tx",
]


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "qa1_x_train.txt").write_text(line + "\n")
    with pytest.raises(InputError, match=r"qa1_x_train\.txt, line 1"):
        babi.load(tmp_path, 1, "train", 5)


def test_support_that_is_no_statement_before_the_question_is_refused(tmp_path: Path) -> None:
    story = (
        "1 Mary moved to the hall.\n2 Where is Mary?\thall\t1\n3 Where is "
        "Mary?\thall\t{}\n4 Mary left.\n"
    )
    for wrong in ("2", "4", "1 x"):
        (tmp_path / "qa1_x_train.txt").write_text(story.format(wrong))
        with pytest.raises(InputError, match=r"line 3: .*no statement before it"):
            babi.load(tmp_path, 1, "train", 5)


def test_a_story_without_a_question_is_refused(tmp_path: Path) -> None:
    (tmp_path / "qa1_x_train.txt").write_text(
        "1 Mary moved.\n2 Where is Mary?\thall\t1\n1 Mary moved.\n"
    )
    with pytest.raises(InputError, match="story 2 asks nothing"):
        babi.load(tmp_path, 1, "train", 5)


# --- the real files -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", get_args(Layout))
def test_every_story_of_the_real_files_becomes_a_valid_row(shared: Path, layout: Layout) -> None:
    files = sorted((shared / "data/babi10k").glob("qa*_test.txt"))
    assert len(files) == 20
    for path in files:
        task = int(path.name[2:].split("_")[0])
        stories = babi.load(path.parent, task, "test", 5, layout)
        asked = [sum(line.answer is not None for line in lines) for lines in babi.stories(path)]
        assert [sum(turn.role == "recall" for turn in story.row.turns) for story in stories] == [
            min(5, count) for count in asked
        ]
        for story in stories:
            assert all(distance > 0 for *_, distance in distances(story.row))
            assert len(story.support) == len(story.row.turns)
        kept = [
            replace(story.row, source="") for story in stories[::37]
        ]  # a file of rows does not say where each is from
        assert [row_from_dict(row_to_dict(row)) for row in kept] == kept


@pytest.mark.parametrize("task", [1, 2, 8])
def test_a_value_of_the_real_stories_stands_where_it_is_said_to(shared: Path, task: int) -> None:
    for story in babi.load(shared / "data/babi10k", task, "test", 5):
        turns = story.row.turns
        for fact in (fact for turn in turns for fact in turn.facts if fact.value != "nothing"):
            assert contains_value(
                f"{turns[fact.said_in].query} {turns[fact.said_in].answer}", fact.value
            )


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("task", [1, 2, 6, 8])
def test_every_part_of_the_real_stories_can_be_answered_from_itself(
    shared: Path, task: int, layout: Layout
) -> None:
    stories = babi.load(shared / "data/babi10k", task, "train", 5, layout)
    assert [turn for story in stories for turn in guesses(story.row)] == []
    parts = [part for story in stories for part in babi.windows(story)]
    assert len(parts) > 500
    assert [turn for part in parts for turn in guesses(part)] == []
    for pair in (pair for story in stories for pair in babi.reading_pairs(story)):
        *statements, question = re.findall(r"[^.?]+[.?]", pair.query)
        assert answer_from(map(str.strip, statements), question.strip()) == set(
            pair.answer.split(", ")
        )
