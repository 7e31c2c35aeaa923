"""Agreement with references, and mean rewards: what answers without facts are measured by."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.episode import Episode, Turn
from learner.evaluation.match import match_figures, reward_figure


def turn(answer: str = "", reference: str = "") -> Turn:
    return Turn([1], [2], [0.0], [2], answer=answer, reference=reference)


def episode(*turns: Turn) -> Episode:
    return Episode("e", "t", 0, (turn("said before", "said before"), *turns), 0)


def test_an_answer_is_compared_with_its_reference_by_its_words_turn_by_turn() -> None:
    found = match_figures(
        [
            episode(turn("The red HOUSE!", "the red house"), turn("no", "yes")),
            episode(turn("house red the", "the red house")),
        ]
    )
    exact, f1 = found["exact_match"], found["f1"]
    assert exact.totals() == f1.totals() == {"1": 2, "2": 1, "all": 3}
    assert exact.share() == pytest.approx({"1": 0.5, "2": 0, "all": 1 / 3})
    assert f1.share() == pytest.approx({"1": 1, "2": 0, "all": 2 / 3})


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("a b c d", "a b", 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("a b", "a b c d", 2 * 1 * (2 / 4) / (1 + 2 / 4)),
        ("no no no", "no", 0.5),  # a word counts as often as it stands in both
        ("", "a", 0),
        ("我喜欢茶", "我喜欢咖啡", 2 * 3 / (4 + 5)),
        ("?", "?", 1),
        ("?", "!", 0),
    ],
)
def test_f1_is_the_harmonic_mean_of_precision_and_recall_of_words(
    answer: str, reference: str, f1: float
) -> None:
    assert match_figures([episode(turn(answer, reference))])["f1"].share()["all"] == pytest.approx(
        f1
    )


def test_the_opening_and_answers_without_a_reference_do_not_count() -> None:
    assert match_figures([episode(turn("anything", " "))])["f1"].totals() == {}
    assert match_figures([])["exact_match"].share() == {}


def test_intervals_are_over_conversations_also_where_all_answers_match() -> None:
    same = turn("yes", "yes")
    low, high = match_figures([episode(same, same)] * 3)["f1"].intervals()["all"]
    assert low == pytest.approx(0.4385, abs=1e-3)  # the score interval of 3 of 3
    assert high == 1


def test_means_of_rewards_are_over_the_turns_that_have_them() -> None:
    scored = [
        replace(turn(), rewards={"bleu": 0.5, "recall": 1.0}, reward=0.6),
        replace(turn(), rewards={"bleu": 0.1}, reward=0.2),
        turn(),
    ]
    figure = reward_figure([episode(*scored)])
    assert figure.share() == pytest.approx({"bleu": 0.3, "recall": 1.0, "total": 0.4})
    assert figure.totals() == {"bleu": 2, "recall": 1, "total": 2}


def test_a_reward_that_is_always_the_same_has_no_interval_of_a_share() -> None:
    paid = replace(turn(), rewards={"points": 1.0}, reward=0.0)
    assert reward_figure([episode(paid)] * 4).intervals() == {"points": (1, 1), "total": (0, 0)}
