"""Long told turns of conversations, told in several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.data.conversations import save_rows
from common.data.division import (
    WHOLE_ANSWER,
    WHOLE_COMPARED,
    WHOLE_UNTOLD,
    WHOLE_VALUE,
    divided,
)
from common.data.leftovers import Leftovers
from common.data.validate import validate_rows
from common.episode import Fact, Interaction, Row

LONG = "My cat is called Luna. I live in Rome. My job is cook."


def told(query: str = LONG, answer: str = "okay") -> Row:
    asked = Interaction("Where do I live?", "in Rome", role="recall", facts=(Fact("Rome", 0),))
    more = Interaction("My dog is called Rex.", "fine", role="remember")
    last = Interaction("And the dog?", "it is Rex", role="recall", facts=(Fact("Rex", 2),))
    return Row(query, answer, (asked, more, last))


def test_sentences_become_turns_and_facts_follow_the_turn_that_says_them(tmp_path: Path) -> None:
    left = Leftovers()
    row = divided(told(), 5, "here", left)
    assert [turn.query for turn in row.turns] == [
        "My cat is called Luna.", "I live in Rome.", "My job is cook.",
        "Where do I live?", "My dog is called Rex.", "And the dog?",
    ]  # fmt: skip
    assert [turn.role for turn in row.turns[:3]] == ["remember"] * 3
    assert [turn.answer for turn in row.turns[:4]] == ["okay", "okay", "okay", "in Rome"]
    assert [fact.said_in for turn in row.turns for fact in turn.facts] == [1, 4]
    assert [entry.number for entry in left.entries()] == [1]
    save_rows([row], tmp_path / "rows.jsonl")
    assert validate_rows(tmp_path / "rows.jsonl").warnings == []


def test_as_few_turns_as_whole_sentences_allow_and_none_where_it_fits() -> None:
    left = Leftovers()
    assert len(divided(told(), 9, "here", left).turns) == 5
    assert divided(told(), 13, "here", Leftovers()) == told()


def test_no_word_is_lost_where_a_sentence_alone_is_too_long() -> None:
    left = Leftovers()
    row = divided(told("I live in Rome with a cat and a dog"), 4, "here", left)
    pieces = [turn.query for turn in row.turns]
    told_first = pieces[: pieces.index("Where do I live?")]
    assert " ".join(told_first) == "I live in Rome with a cat and a dog"
    assert [entry.number for entry in left.entries()] == [2, 2]


def test_questions_and_answers_stay_whole_and_are_counted() -> None:
    left = Leftovers()
    asked = Interaction("Where do I live, as I told you?", "in Rome", role="recall")
    row = Row("I live in Rome.", "I see, you live in Rome now", (asked,))
    assert divided(row, 4, "file, row 7", left) == row
    assert left.entries() == [
        (WHOLE_ANSWER, 1, "file, row 7"),
        (WHOLE_UNTOLD, 1, "file, row 7"),
    ]


def test_a_conversation_of_one_follow_up_is_single_no_more() -> None:
    asked = Interaction("Where do I live?", "in Rome", role="recall", facts=(Fact("Rome", 0),))
    row = Row(LONG, "okay", (asked,), strategy="single")
    assert divided(row, 5, "here", Leftovers()).strategy == "cumulative"


def test_turns_by_which_rewards_of_a_long_conversation_compare_stay_whole() -> None:
    left = Leftovers()
    first = Interaction("My dog is called Rex. It is a good dog.", "fine", role="remember")
    long = replace(told(), strategy="long_term")
    row = replace(long, interactions=(first, *long.interactions))
    assert divided(row, 5, "here", left) == row
    assert left.entries() == [(WHOLE_COMPARED, 2, "here")]
    # Those after them are compared as before where they become several.
    later = replace(row, query="hello", interactions=(*long.interactions, first))
    assert [turn.query for turn in divided(later, 5, "here", Leftovers()).turns[:-2]] == [
        turn.query for turn in later.turns[:-1]
    ]


@pytest.mark.parametrize("home", ["I do live in New York", "Home is now in St. Louis"])
def test_a_turn_stays_whole_where_no_piece_would_say_a_value_that_it_says(home: str) -> None:
    left, value = Leftovers(), " ".join(home.split()[-2:])
    fact = (Fact(value, 0),)
    asked = Interaction("Where do I live?", f"in {value}", role="recall", facts=fact)
    row = Row(home, "okay", (asked,))
    assert divided(row, 4, "here", Leftovers()) != row
    assert divided(row, 5, "here", left) == row
    assert left.entries() == [(WHOLE_VALUE, 1, "here")]
    # One that no text says (it follows from what was said) cannot be cut.
    inferred = replace(row, interactions=(replace(asked, facts=(Fact("yes", 0),)),))
    assert len(divided(inferred, 5, "here", Leftovers()).turns) == 3


@pytest.mark.parametrize("role", ["act", "distract"])
def test_turns_that_are_not_told_are_not_counted_as_questions(role: str) -> None:
    left = Leftovers()
    row = Row("hello", "hi", (Interaction(LONG, "okay", role=role),))
    assert divided(row, 5, "here", left) == row
    [entry] = left.entries()
    assert "question" not in entry.what
