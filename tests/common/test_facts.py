"""Whether the validator tells facts that agree with their conversation from those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.config.data import SynthData
from common.data.conversations import row_from_dict, row_to_dict
from common.data.datasets.sgd import load
from common.data.datasets.synth import generate
from common.data.facts import contradictions, fact_faults, fact_warnings
from common.text.values import contains_value

Said = dict[str, Any]


def turn(query: str, answer: str = "okay", *facts: tuple[Any, ...]) -> Said:
    """facts: (value, said_in) or (value, said_in, outdated)."""
    named = [dict(zip(("value", "said_in", "outdated"), fact, strict=False)) for fact in facts]
    return {"query": query, "answer": answer, **({"facts": named} if named else {})}


def row(*turns: Said) -> dict[str, Any]:
    return {**turns[0], "interactions": list(turns[1:])}


def asks(question: str, value: str, said_in: int = 0, outdated: list[str] | None = None) -> Said:
    return turn(question, f"it is {value}", (value, said_in, outdated))


def faults(*turns: Said | str, literal: bool = True) -> list[tuple[str, str]]:
    return list(
        fact_faults(
            row(*(turn(each) if isinstance(each, str) else each for each in turns)), literal
        )
    )


CAT = "what is my cat called?"
HOME = "Where do I live?"

# fmt: off
OUT_OF_DATE = [
    (["My cat is called Luna.", "My cat is now called Milo."], CAT, "Luna"),
    (["My cat is called Luna.", "Hello!", "My cat is now called Milo.", "Bye."],
    "Tell me what my cat is called", "Luna"),
    (["my cat is called luna", "my cat is now called milo"], CAT, "luna"),
    (["My cat is called Luna.", "She is called Milo now."], CAT, "Luna"),
    (["My cat is called Luna. Actually, my cat is called Milo.", "Bye."], CAT, "Luna"),
    (["My cat is called Luna.", "We renamed our cat Milo."], CAT, "Luna"),
    (["My cat's name is Luna.", "My cat's name is now Milo."], CAT, "Luna"),
    (["I have a cat called Luna.", "My cat is now called Milo."], CAT, "Luna"),
    (["golf is my sport", "my sport is now chess"], "what is my sport?", "golf"),
    (["I live in Rome.", "Now I live in Oslo."], HOME, "Rome"),
    (["I live in Rome.", "I've moved to Oslo."], HOME, "Rome"),
    (["I live in St. Ives.", "From now on I live in St. Albans."], HOME, "St. Ives"),
    (["My favourite fruit is the plum.", "My favourite fruit changed to the fig."],
    "What is my favourite fruit?", "plum"),
    (["my sport is golf", "my sport is now chess"], "what is my sport?", "golf"),
    (["I work as a cook.", "I now work as a nurse."], "What is my job?", "cook"),
    (["The meeting is at 3 pm.", "Sorry, the meeting is at 4 pm."], "When is the meeting?", "3 pm"),
    (["The meeting is on Monday.", "The meeting is on Friday instead."], "When is the meeting?",
    "Monday"),
    (["My grade is B+.", "Correction: my grade is A-."], "What is my grade?", "B+"),
    (["I am 41 years old.", "I am now 42 years old."], "How old am I?", "41"),
    (["My first name is Tom.", "My first name is now Jim."], "What is my first name?", "Tom"),
    (["My cat is called Luna.", "My cat is now called Milo."],
    "Don't you remember what my cat is called?", "Luna"),
    (["My cat is called Luna.", "My cat is now called Milo."], "What was my cat called again?",
    "Luna"),
    (["My phone number is 44-17.", "My new phone number is 44-18."], "What is my phone number?",
    "44-17"),
    (["My cat is called Luna.", "Forget that, my cat is called Milo."], CAT, "Luna"),
    (["Meine Katze heißt Luna.", "Meine Katze heißt jetzt Milo."], "Wie heißt meine Katze?",
    "Luna"),
    (["Mon chat s'appelle Luna.", "Mon chat s'appelle maintenant Milo."],
    "Comment s'appelle mon chat?", "Luna"),
]
TAKEN_BACK = [
    (["I live in Rome.", "I no longer live in Rome."], HOME, "Rome"),
    (["I live in Rome.", "I don't live in Rome any more, I live in Oslo."], HOME, "Rome"),
    (["I live in Rome.", "I live in Oslo now, not in Rome."], HOME, "Rome"),
    (["My cat is called Luna.", "My cat is no longer called Luna but Milo."], CAT, "Luna"),
]
STILL_TRUE = [
    (["I like tea.", "I like coffee."], "What do I like?", "tea"),
    (["I like tea.", "Now I also like coffee."], "What do I like?", "tea"),
    (["I like tea.", "Besides, I now like coffee."], "What do I like?", "tea"),
    (["I live in Rome.", "Now I live in Oslo?"], HOME, "Rome"),
    (["i'm tom", "now i'm tired"], "who am i?", "tom"),
    (["I live in Rome.", "I live in Oslo."], HOME, "Rome"),
    (["I live in Rome.", "Do I live in Oslo now?"], HOME, "Rome"),
    (["I live in Rome.", "My sister lives in Oslo now."], HOME, "Rome"),
    (["I live in Rome.", "Now I live in a flat."], HOME, "Rome"),
    (["I live in Rome.", "Now I live alone."], HOME, "Rome"),
    (["I live in Rome.", "Now I live in Oslo."], "Where did I live before?", "Rome"),
    (["My car is red.", "My car is now broken."], "What colour is my car?", "red"),
    (["My colour is red.", "It is raining now."], "What is my colour?", "red"),
    (["I'm Tom.", "Now I'm tired."], "What is my name?", "Tom"),
    (["My cat is called Luna.", "My dog is now called Max."], CAT, "Luna"),
    (["My cat is called Luna.", "I now have a dog called Max."], CAT, "Luna"),
    (["My cat is called Luna.", "My cat is now three years old."], CAT, "Luna"),
    (["My cat is called Luna. Luna is hungry.", "Max is now hungry."], CAT, "Luna"),
    (["My cat is called Luna. I saw Luna.", "Now I saw Max."], CAT, "Luna"),
    (["My cat is black.", "I renamed my cat Milo."], "What colour is my cat?", "black"),
    (["I want pizza.", "Now I want to sleep."], "What do I want to eat?", "pizza"),
    (["My cat is called Luna.", "My cat is now called Milo."], "What was my cat called?", "Luna"),
    (["My cat is called Luna.", "My cat is now called Milo."], "What was my old cat's name?",
    "Luna"),
    (["I have a cat called Luna.", "I have a new cat called Milo."], "What is my first cat called?",
    "Luna"),
]
# fmt: on


@pytest.mark.parametrize(("told", "question", "value"), OUT_OF_DATE)
def test_a_value_is_refused_once_a_statement_has_replaced_it(
    told: list[str], question: str, value: str
) -> None:
    found = faults(*told, asks(question, value))
    assert [field for field, _ in found] == [f"interactions.{len(told) - 1}.facts.0.value"]
    assert f"{value!r} is out of date: turn " in found[0][1]
    assert not faults(*told, asks(question, value), literal=False)
    # Before the change it was right, and it is again once it was told again.
    assert not faults(told[0], asks(question, value), *told[1:]) or "Actually" in told[0]
    assert not faults(
        *told, f"No, {told[0].split(' Actually')[0]}", asks(question, value, len(told))
    )


@pytest.mark.parametrize(("told", "question", "value"), TAKEN_BACK)
def test_a_value_is_refused_once_it_was_taken_back(
    told: list[str], question: str, value: str
) -> None:
    assert "is out of date: turn 1 says" in faults(*told, asks(question, value, 1))[0][1]


@pytest.mark.parametrize(("told", "question", "value"), STILL_TRUE)
def test_what_may_still_be_true_is_not_out_of_date(
    told: list[str], question: str, value: str
) -> None:
    assert not faults(*told, asks(question, value))


def test_a_value_is_refused_if_the_same_question_has_a_later_answer() -> None:
    told = ["Call my cat Luna.", "Milo suits her better."]
    [(field, what)] = faults(*told, asks(CAT, "Milo", 1), asks("What is my cat called", "Luna"))
    assert field == "interactions.2.facts.0.value"
    assert (
        what == "'Luna' is out of date: interaction 2 answers the same question with 'Milo', which "
        "turn 1 said later"
    )
    assert not faults(told[0], asks(CAT, "Luna"), told[1], asks(CAT, "Milo", 2))
    assert not faults(*told, asks(CAT, "Milo", 1), asks("What did I call my cat first?", "Luna"))
    both = turn(CAT, "Luna or Milo", ("Luna", 0), ("Milo", 1))
    assert not faults(*told, both)


def test_a_value_is_refused_if_another_fact_says_that_it_was_replaced() -> None:
    told = ["Call my cat Luna.", "Milo suits my cat better."]
    [(field, what)] = faults(
        *told, asks(CAT, "Luna"), asks("Which name has my cat?", "Milo", 1, ["Luna"])
    )
    assert field == "interactions.1.facts.0.value"
    assert "'Milo' replaced it in turn 1" in what
    assert not faults(
        told[0], asks(CAT, "Luna"), told[1], asks("Which name has my cat?", "Milo", 2, ["Luna"])
    )
    # The dog has the name that the cat had.
    told = ["My dog is called Luna.", "Call my cat Luna.", "Milo suits my cat better."]
    assert not faults(
        *told,
        asks("What is my dog called?", "Luna", 1),
        asks("Which name has my cat?", "Milo", 2, ["Luna"]),
    )


def test_the_last_turn_that_says_a_value_is_named() -> None:
    told = ["My cat is called Luna.", "Hello!", turn("Luna sleeps.", "good")]
    [(field, what)] = faults(*told, asks(CAT, "Luna"))
    assert field == "interactions.2.facts.0.said_in"
    assert what == "is 0, but turn 2 was the last to say 'Luna', in its query or answer"
    assert not faults(*told, asks(CAT, "Luna", 2))
    # An answer says it again.
    assert "turn 1 was the last" in faults(told[0], asks(CAT, "Luna"), asks(CAT, "Luna"))[0][1]
    [(field, what)] = faults(*told, asks(CAT, "Luna", 1))
    assert field == "interactions.2.facts.0.said_in"
    assert what == "is 1, where 'Luna' was never said: turn 2 was the last to say it"
    [(field, what)] = faults(*told, asks(CAT, "Milo"))
    assert field == "interactions.2.facts.0.value"
    assert what == "'Milo' was never said before interaction 3 asks for it"
    assert not faults(*told, asks(CAT, "Milo", 1), literal=False)


def test_a_wrong_turn_is_refused_whatever_the_capitals_and_the_script() -> None:
    assert faults("my colour is blue", "blue is nice", asks("What is my colour?", "Blue", 0))[0][
        1
    ].startswith("is 0, but turn 1 was")
    assert faults("我的猫叫咪。", "咪很可爱。", asks("我的猫叫什么？", "咪", 0))[0][1].startswith(
        "is 0, but turn 1 was"
    )


def test_other_words_and_longer_values_do_not_say_a_value_again() -> None:
    assert not faults(
        "I was born in May.", "may I ask something?", asks("When is my birthday?", "May")
    )
    assert not faults("My grade is A.", "A nice day, is it?", asks("What is my grade?", "A"))
    assert not faults(
        "I come from York.",
        "I live in New York.",
        asks("Where do I come from?", "York"),
        asks(HOME, "New York", 1),
    )


def test_a_value_in_its_own_question_and_one_that_the_reference_lacks_are_warned_of() -> None:
    def warnings(question: Said) -> list[tuple[str, str]]:
        return list(fact_warnings(row(turn("My cat is called Luna."), question)))

    assert not warnings(asks(CAT, "Luna"))
    [(field, what)] = warnings(asks("Is my cat called Luna?", "Luna"))
    assert (field, what.split(":")[0]) == (
        "interactions.0.facts.0.value",
        "'Luna' stands in the question itself",
    )
    [(field, what)] = warnings(turn(CAT, "I forgot", ("Luna", 0)))
    assert (field, what.split(",")[0]) == (
        "interactions.0.facts.0.value",
        "'Luna' does not stand in the reference answer",
    )


@pytest.mark.parametrize("strategy", ["single", "cumulative", "long_term"])
def test_generated_conversations_agree_with_their_facts(strategy: Any) -> None:
    rows = generate(
        SynthData(train=300, eval=20, steps=[4, 8], strategies=[strategy], change_probability=0.5),
        3,
    )["train"]
    for record in map(row_to_dict, rows):
        assert not [*fact_faults(record, literal=True), *fact_warnings(record)], record


def test_the_replaced_value_of_a_generated_question_is_refused() -> None:
    tried = 0
    for record in map(
        row_to_dict,
        generate(SynthData(train=100, eval=20, steps=[4, 8], change_probability=0.5), 5)["train"],
    ):
        for number, question in enumerate(record["interactions"]):
            for fact in question.get("facts", []):
                if "outdated" in fact:
                    told = [
                        turn(each["query"], each["answer"])
                        for each in [record, *record["interactions"][:number]]
                    ]
                    old = fact["outdated"][-1]
                    last = max(
                        i
                        for i, each in enumerate(told)
                        if contains_value(each["query"] + "\n" + each["answer"], old)
                    )
                    found = faults(*told, asks(question["query"], old, last))
                    assert [field for field, _ in found] == [
                        f"interactions.{number}.facts.0.value"
                    ], (told, question)
                    tried += 1
    assert tried > 30


def contradict(*told: Said | str) -> list[tuple[int, str]]:
    record = row(*(turn(each) if isinstance(each, str) else each for each in told))
    return list(contradictions(row_from_dict(record).turns))


CHANGE = ("My cat is called Luna.", "My cat is now called Milo.")


def test_a_value_and_the_one_that_replaced_it_contradict_in_one_turn() -> None:
    both = turn("What is my cat called?", "Luna, Milo", ("Luna", 0), ("Milo", 1, ["Luna"]))
    [(number, what)] = contradict(*CHANGE, "nice weather", both)
    assert number == 3
    assert what == "it asks for 'Luna' and for 'Milo', which replaced it"
    # A question about the past may ask for both, and a dog may have the cat's old name.
    past = {**both, "query": "What was my cat called, before and now?"}
    assert contradict(*CHANGE, past) == []
    assert contradict(f"{CHANGE[0]} My dog is called Luna.", CHANGE[1], both) == []
    # Asked for in turns of their own, they are a change.
    first, second = asks("What is my cat called?", "Luna"), asks("And now?", "Milo", 2, ["Luna"])
    assert contradict(CHANGE[0], first, CHANGE[1], second) == []


def test_values_that_each_replaced_the_other_contradict() -> None:
    facts = (("Luna", 0, ["Milo"]), ("Milo", 1, ["Luna"]))
    asked = turn("What is my cat called?", "Luna", *facts)
    [(number, what)] = contradict(*CHANGE, asked)
    assert (number, what) == (2, "'Luna' and 'Milo' each replaced the other")
    assert contradict(*CHANGE, {**asked, "query": "What was my cat called before?"}) == []


def test_a_cat_and_a_dog_may_swap_names() -> None:
    told = ("My cat is called Luna.", "My dog is called Milo.")
    changed = ("My cat is now called Milo.", "My dog is now called Luna.")
    facts = (("Milo", 2, ["Luna"]), ("Luna", 3, ["Milo"]))
    asked = turn("What are my cat and dog called?", "Milo and Luna", *facts)
    assert contradict(*told, *changed, asked) == []


def test_values_that_no_text_says_are_of_as_many_statements_as_there_are() -> None:
    asked = turn("Am I at home, and is it late?", "yes, yes", ("yes", 0), ("yes", 2))
    assert contradict("I am in my kitchen.", "hello", "It is past midnight.", asked) == []


def test_a_value_that_is_said_once_cannot_be_of_two_turns() -> None:
    asked = turn("What are my pets called?", "Luna, Luna", ("Luna", 0), ("luna", 1))
    assert contradict("My cat is called Luna.", "hello", asked) == [
        (2, "'Luna' is said in turn 0 and in turn 1")
    ]
    assert contradict("My cat is called Luna.", "My dog is called Luna.", asked) == []
    # An answer tells a value too, but not where it repeats its query or recalls.
    told = turn("Name my dog.", "Let it be Luna.")
    assert contradict("My cat is called Luna.", told, asked) == []
    again, recalled = turn("My cat is called Luna.", "Luna!"), asks("The cat?", "Luna")
    assert len(contradict(again, recalled, asked)) == 1


def test_generated_facts_never_contradict_one_another() -> None:
    settings = SynthData(
        train=200, eval=20, steps=[8], change_probability=0.5, final_question="all"
    )
    rows = generate(settings, 5)["train"]
    assert max(len(turn.facts) for row in rows for turn in row.turns) > 2
    assert not [what for row in rows for what in contradictions(row.turns)]


def test_converted_dialogues_agree_with_their_facts(shared: Path) -> None:
    for confirmation in load(shared / "data/sgd", "dev"):
        record = row_to_dict(confirmation.row)
        assert not [*fact_faults(record, literal=True), *fact_warnings(record)], record
