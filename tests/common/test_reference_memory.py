"""The memory that a policy is taught to write: what was told, without what was replaced."""

from __future__ import annotations

from common.data.reference_memory import ReferenceMemories
from common.episode import Fact, Interaction, Row

VALUES = ("Rex", "Max", "Rome", "Berlin", "tea")


def row(*turns: tuple[str, str], facts: tuple[Fact, ...] = ()) -> Row:
    """turns: role and query of each; facts: what the last one asks for."""
    (_, opening), *others = turns
    asked = [Interaction(query, "so", role=role) for role, query in others]  # type: ignore[arg-type]
    last = asked[-1]
    asked[-1] = Interaction(last.query, last.answer, role=last.role, facts=facts)
    return Row(opening, "so", tuple(asked))


def test_statements_stand_one_a_line_and_small_talk_does_not() -> None:
    told = row(
        ("remember", "my dog is called Rex"),
        ("distract", "I am so tired"),
        ("remember", "I live in Rome,\n and like it"),
        ("recall", "what is my dog called?"),
    )
    assert ReferenceMemories(VALUES).of(told) == [
        "my dog is called Rex",
        "my dog is called Rex",
        "my dog is called Rex\nI live in Rome, and like it",
        "my dog is called Rex\nI live in Rome, and like it",
    ]


def test_a_later_statement_takes_the_place_of_the_one_it_replaces() -> None:
    """Whatever is asked afterwards: the policy does not know it when it writes."""
    for question in ("where do I live?", "what do I drink?"):
        told = row(
            ("remember", "I live in Rome"),
            ("remember", "I like tea"),
            ("remember", "now I live in Berlin"),
            ("recall", question),
        )
        assert ReferenceMemories(VALUES).of(told)[1:] == [
            "I live in Rome\nI like tea",
            "I like tea\nnow I live in Berlin",
            "I like tea\nnow I live in Berlin",
        ]


def test_what_a_fact_names_as_outdated_is_replaced_whatever_its_words() -> None:
    told = row(
        ("remember", "we call the dog Rex"),
        ("act", "he answers to Max these days, poor thing"),
        ("recall", "what is my dog called?"),
        facts=(Fact("Max", 1, ("Rex",)),),
    )
    assert ReferenceMemories(VALUES).of(told) == [
        "we call the dog Rex",
        "he answers to Max these days, poor thing",
        "he answers to Max these days, poor thing",
    ]


def test_a_statement_of_two_values_holds_as_long_as_one_of_them_does() -> None:
    told = row(
        ("remember", "my dog is called Rex and I live in Rome"),
        ("remember", "now I live in Berlin"),
        ("recall", "what is my dog called?"),
    )
    assert ReferenceMemories(VALUES).of(told)[-1] == (
        "my dog is called Rex and I live in Rome\nnow I live in Berlin"
    )


def test_nothing_told_is_an_empty_memory() -> None:
    told = row(("remember", ""), ("act", "hello"), ("act", "you are kind"))
    assert ReferenceMemories(VALUES).of(told) == ["", "", ""]
