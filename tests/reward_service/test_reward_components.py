"""Cosine, length and recall, on numbers worked out by hand."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from common.config.components import Length
from common.episode import Fact, Turn
from reward_service.components.cosine import embed, likeness, running_means, unit
from reward_service.components.length import length_reward
from reward_service.components.recall import Named, named_values, recall, words_of_values
from reward_service.components.tokens import Ragged


def test_a_text_is_the_sum_of_its_token_embeddings_however_long_the_others_are() -> None:
    embedding = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
    rng = random.Random(0)
    texts = [[rng.randrange(50) for _ in range(n)] for n in (0, 3, 1, 40, 0, 7)]
    expected = [embedding[text].sum(axis=0) if text else np.zeros(7) for text in texts]
    np.testing.assert_allclose(embed(embedding, Ragged.of(texts)), expected, atol=1e-5)
    assert embed(embedding, Ragged.of([[], []])).tolist() == np.zeros((2, 7)).tolist()


def test_a_token_outside_the_embedding_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="token id 9 lies outside an embedding of 4"):
        embed(np.eye(4, dtype=np.float32), Ragged.of([[1, 9]]))


def test_likeness_is_cosine_clamped_at_zero_and_nothing_is_like_an_empty_text() -> None:
    a = unit(np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [2.0, 2.0]], dtype=np.float32))
    b = unit(np.array([[3.0, 4.0], [-1.0, 0.0], [1.0, 0.0], [5.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(likeness(a, b), [1.0, 0.0, 0.0, math.sqrt(0.5)], atol=1e-6)


def test_running_means_of_several_conversations_follow_the_recurrence() -> None:
    vectors = np.eye(5, dtype=np.float32)
    means = running_means(vectors, np.array([0, 1, 2, 0, 1]), decay=0.2)
    np.testing.assert_allclose(means[2], [0.04, 0.16, 0.8, 0, 0], atol=1e-7)
    np.testing.assert_allclose(means[3], [0, 0, 0, 1, 0], atol=1e-7)
    np.testing.assert_allclose(means[4], [0, 0, 0, 0.2, 0.8], atol=1e-7)


def test_special_tokens_leave_rows_that_overlap() -> None:
    flat = Ragged.of([[5, 0, 7], [0, 0], [8, 1, 9, 0]])
    both = Ragged(flat.flat, np.array([0, 3]), np.array([5, 6]))
    kept = both.without({0, 1})
    assert [
        kept.flat[s : s + n].tolist() for s, n in zip(kept.starts, kept.lengths, strict=True)
    ] == [[5, 7], [8, 9]]
    apart = flat.without({0, 1})
    assert [
        apart.flat[s : s + n].tolist() for s, n in zip(apart.starts, apart.lengths, strict=True)
    ] == [[5, 7], [], [8, 9]]


@pytest.mark.parametrize(
    ("section", "answer", "reference", "expected"),
    [
        (Length(), 5, 10, 0.5),
        (Length(), 10, 10, 1.0),
        (Length(), 20, 10, 0.5),
        (Length(penalty=False), 20, 10, 1.0),
        (Length(target=4), 2, 10, 0.5),
        (Length(target=4), 16, 10, 0.25),
        (Length(), 0, 10, 0.0),
        (Length(), 0, 0, 1.0),
        (Length(), 3, 0, 0.0),
        (Length(penalty=False), 3, 0, 1.0),
    ],
)
def test_length_reward(section: Length, answer: int, reference: int, expected: float) -> None:
    assert length_reward(section, np.array([answer]), np.array([reference]))[0] == expected


KNOWN = words_of_values(["Rex", "Max", "Oslo", "New York", "York"])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Your dog is called Rex.", 1.0),
        ("Your dog is called Max.", 0.0),
        ("I do not know.", -0.5),
        ("Rex, or Max", (1 - 0.5 * 1) / 2),
        ("rex max oslo York", (1 - 0.5 * 3) / 4),
        ("Rexford", -0.5),
        ("Rex the puppy", 1.0),
        ("New Rex York", (1 - 0.5 * 1) / 2),
    ],
)
def test_recall_pays_the_right_value_and_charges_for_none_and_for_more_than_one(
    answer: str, expected: float
) -> None:
    turn = Turn(
        [],
        [],
        [],
        [],
        facts=(Fact("Rex", 0),),
        query="What is my puppy called?",
        reference="Rex.",
        answer=answer,
    )
    assert recall(
        named_values(turn, KNOWN | words_of_values(["puppy"])), false_recall=0.5
    ) == pytest.approx(expected)


def test_wrong_values_inside_right_ones_are_free() -> None:
    turn = Turn(
        [], [], [], [], facts=(Fact("Rex", 0), Fact("New York", 1)), answer="It lives in New York"
    )
    assert named_values(turn, KNOWN) == Named(right=1, asked=2, wrong=0)


def test_a_wrong_value_that_holds_another_one_is_one_value() -> None:
    turn = Turn([], [], [], [], facts=(Fact("Rex", 0),), answer="in New York", reference="Rex")
    assert named_values(turn, KNOWN) == Named(right=0, asked=1, wrong=1)
    assert named_values(replace(turn, answer="New York, York"), KNOWN) == Named(
        right=0, asked=1, wrong=2
    )
    assert named_values(replace(turn, reference="New York"), KNOWN) == Named(
        right=0, asked=1, wrong=0
    )


def test_of_several_values_asked_for_a_guess_at_the_second_costs_less_than_leaving_it_out() -> None:
    both, guessed, one, three, none = (
        Named(2, 2, 0),
        Named(1, 2, 1),
        Named(1, 2, 0),
        Named(2, 2, 1),
        Named(0, 2, 0),
    )
    assert [recall(named, 1.0) for named in (both, guessed, one, three, none)] == [
        1.0,
        0.5,
        0.0,
        1 / 3,
        -1.0,
    ]
    assert [recall(named, 0.5) for named in (both, guessed, one, three, none)] == [
        1.0,
        0.5,
        0.25,
        0.5,
        -0.5,
    ]


def test_a_longer_wrong_value_around_a_right_one_is_named_in_its_place() -> None:
    turn = Turn([], [], [], [], facts=(Fact("York", 0),), answer="in New York")
    assert named_values(turn, KNOWN) == Named(right=0, asked=1, wrong=1)
    assert named_values(replace(turn, answer="New York, no, York"), KNOWN) == Named(
        right=1, asked=1, wrong=1
    )
    assert named_values(replace(turn, reference="in York, not New York"), KNOWN) == Named(
        right=0, asked=1, wrong=0
    )
    turn = Turn([], [], [], [], facts=(Fact("小红", 0),), answer="她叫小红帽。")
    assert named_values(turn, words_of_values(["小红", "小红帽"])) == Named(
        right=0, asked=1, wrong=1
    )


@pytest.mark.parametrize(
    ("answer", "named", "recall", "precision", "exact"),
    [
        ("Rex, in Oslo", Named(2, 2, 0), 1.0, 1.0, True),
        ("in Oslo, it is Rex and Rex again", Named(2, 2, 0), 1.0, 1.0, True),
        ("Rex", Named(1, 2, 0), 0.5, 1.0, False),
        ("Rex, in Oslo, or Max", Named(2, 2, 1), 1.0, 2 / 3, False),
        ("Max, Max or Max in York", Named(0, 2, 2), 0.0, 0.0, False),
        ("I do not know.", Named(0, 2, 0), 0.0, None, False),
    ],
)
def test_an_answer_is_exact_if_it_names_all_values_asked_for_and_no_wrong_one(
    answer: str, named: Named, recall: float, precision: float | None, exact: bool
) -> None:
    turn = Turn(
        [],
        [],
        [],
        [],
        facts=(Fact("Rex", 0), Fact("Oslo", 1), Fact("Rex", 1)),
        reference="Rex, in Oslo.",
        answer=answer,
    )
    assert named_values(turn, KNOWN) == named
    assert (named.recall, named.precision, named.exact) == (recall, precision, exact)


@pytest.mark.parametrize(
    ("value", "other", "answer"),
    [
        ("B+", "B-", "It is {}."),
        ("-7", "7", "it is {}, I think"),
        ("C++", "C", "You write {}!"),
        ("चीनी", "चीन", "नाम {} है"),
        ("小红", "小蓝", "她叫{}。"),
        ("タマ", "クロ", "猫は{}です"),
        ("부산", "서울", "{}에서 왔어요"),
        ("café", "cafe", "the cafe\u0301"),
        ("🐶", "🐱", "{}{}"),
        ("Luna", "Tom", "It is {}'s bowl.Look"),
    ],
)
def test_recall_tells_values_apart_by_signs_and_finds_them_in_every_script(
    value: str, other: str, answer: str
) -> None:
    known = words_of_values([value, other])
    for written, right in ((value, 1), (other, 0)):
        if "{}" in answer or right:
            turn = Turn(
                [], [], [], [], facts=(Fact(value, 0),), answer=answer.format(written, written)
            )
            assert named_values(turn, known) == Named(right, 1, 1 - right)


def test_a_fact_without_anything_to_find_is_refused() -> None:
    assert named_values(
        Turn([], [], [], [], facts=(Fact("?!", 0),), answer="what ?!"), frozenset()
    ).exact
    with pytest.raises(ValueError, match="holds nothing"):
        named_values(Turn([], [], [], [], facts=(Fact(" \u200b", 0),), answer="?!"), frozenset())
