"""Retention figures: what counts as recalled, exact, precise, outdated, and how sure a share is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from common.episode import Episode, Fact, Interaction, Role, Row, Turn
from common.failures import DataFailure
from learner.evaluation.evaluate import recall_by_distance
from learner.evaluation.figures import Figure
from learner.evaluation.intervals import bootstrap
from learner.evaluation.retention import (
    most_frequent_figure,
    order_of_telling,
    retention_figures,
)


def turn(answer: str = "", *facts: Fact, query: str = "", role: Role = "recall") -> Turn:
    return Turn([1], [2], [0.0], [2], role=role, query=query, answer=answer, facts=facts)


def told(query: str, role: Role = "remember") -> Turn:
    return turn("okay", query=query, role=role)


def episode(*turns: Turn, opening: str = "hello") -> Episode:
    return Episode("e", "t", 0, (told(opening), *turns), 0)


def shares(*episodes: Episode, known: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    return {name: figure.share() for name, figure in retention_figures(episodes, known).items()}


def test_recall_is_counted_by_turns_since_the_value_was_last_said() -> None:
    rex = Fact("Rex", 0)
    episodes = [
        episode(turn("your dog is Rex", rex), turn("it is Rexford", rex)),
        episode(
            turn("no idea", Fact("Rome", 0)),
            turn("okay"),
            turn(
                "at 12:30 in ROME, with Ida Lee", Fact("Rome", 2), Fact("12", 0), Fact("Ida Lee", 2)
            ),
        ),
        episode(*[turn()] * 10, turn("Max", Fact("Max", 0))),
    ]
    recall, counts = recall_by_distance(episodes)
    assert counts == {"1": 4, "2": 1, "3": 1, "11": 1, "all": 7}
    assert recall == {"1": 3 / 4, "2": 0.0, "3": 0.0, "11": 1.0, "all": 4 / 7}
    assert list(recall) == ["1", "2", "3", "11", "all"]


def test_facts_of_the_opening_turn_are_told_not_asked() -> None:
    rex = Fact("Rex", 0)
    opened = replace(episode(turn("Rex", rex)), turns=(turn("Rex", rex), turn("Rex", rex)))
    assert recall_by_distance([opened])[1] == {"1": 1, "all": 1}
    assert recall_by_distance([]) == ({}, {})


def test_episode_that_could_not_be_played_is_no_zero() -> None:
    failed = replace(episode(replace(turn(), failure="too long")), status="failed")
    with pytest.raises(DataFailure, match="could not be played: too long"):
        recall_by_distance([episode(turn("Rex", Fact("Rex", 0))), failed])


def test_recall_needs_no_reward() -> None:
    unscored = replace(episode(turn("Rex", Fact("Rex", 0))), status="unscored")
    assert recall_by_distance([unscored])[0]["all"] == 1.0


def test_a_list_of_all_values_recalls_everything_and_is_neither_exact_nor_precise() -> None:
    rex, rome = Fact("Rex", 0), Fact("Rome", 0)
    honest = episode(turn("Rex", rex), turn("Rome", rome))
    listing = episode(turn("Rex Rome Max", rex), turn("Rex Rome Max", rome))
    silent = episode(turn("okay", rex), turn("okay", rome))
    found = shares(honest)
    assert (found["recall"]["all"], found["exact"]["all"], found["precision"]["all"]) == (1, 1, 1)
    found = shares(listing, known=("Max",))
    assert (found["recall"]["all"], found["exact"]["all"]) == (1, 0)
    assert found["precision"]["all"] == pytest.approx(1 / 3)
    # Without the values of the training data, Max is no value.
    assert shares(listing)["precision"]["all"] == pytest.approx(1 / 2)
    found = shares(silent)
    assert (found["recall"]["all"], found["exact"]["all"], found["precision"]) == (0, 0, {})


def test_an_answer_is_exact_only_with_every_value_that_was_asked_for() -> None:
    both = (Fact("tea", 0), Fact("milk", 1))
    found = shares(episode(told("I drink milk"), turn("tea and milk", *both), turn("tea", *both)))
    # At the distance of the value that was said longest ago: 2 and 3.
    assert found["exact"] == {"2": 1.0, "3": 0.0, "all": 0.5}
    assert found["recall"]["all"] == 0.75
    assert found["precision"]["all"] == 1.0


def test_changed_facts_and_answers_with_the_outdated_value_are_counted_apart() -> None:
    max_ = Fact("Max", 1, ("Rex",))
    found = shares(
        episode(
            told("my dog is now called Max"),
            turn("your dog is Max", max_),
            turn("your dog is Rex", max_),
            turn("Rex, no, Max", max_),
            turn("okay", max_),
            turn("Paris", Fact("Paris", 0)),
            turn("no idea", Fact("Paris", 0)),
        )
    )
    assert found["changed"]["all"] == 2 / 4
    assert found["outdated"]["all"] == 2 / 4
    assert found["recall"]["all"] == 3 / 6
    moved = Fact("New York", 1, ("York",))
    assert (
        shares(episode(told("I live in New York now"), turn("New York", moved)))["outdated"]["all"]
        == 0
    )
    assert (
        shares(episode(told("I live in New York now"), turn("New York, York", moved)))["outdated"][
            "all"
        ]
        == 1
    )
    back_to_york = Fact("York", 1, ("New York",))
    found = shares(episode(told("I live in York now"), turn("you live in New York", back_to_york)))
    assert (
        found["outdated"]["all"],
        found["changed"]["all"],
        found["recall"]["all"],
        found["exact"]["all"],
    ) == (1, 0, 0, 0)
    # An answer that names the old value because it is asked about it is right.
    spoken_of = replace(
        turn("Max, no longer Rex", max_, query="is it Rex?"), reference="Max, no longer Rex"
    )
    found = shares(episode(told("my dog is now called Max"), spoken_of))
    assert (found["outdated"]["all"], found["exact"]["all"]) == (0, 1)
    # The old value is a wrong one although no question asks for it.
    assert (
        shares(episode(told("my dog is now called Max"), turn("Rex or Max", max_)))["precision"][
            "all"
        ]
        == 0.5
    )
    # A value that came back is not outdated.
    back = Fact("Rex", 2, ("Rex", "Max"))
    found = shares(episode(told("Max"), told("Rex"), turn("Rex", back)))
    assert found["outdated"]["all"] == 0


def test_recall_by_order_counts_the_turns_that_told_something() -> None:
    tea, rome = Fact("tea", 0), Fact("Rome", 3)
    played = episode(
        told("how are you?", role="distract"),
        turn("tea", tea),
        told("I live in Rome"),
        turn("I forgot", rome),
        turn("tea", Fact("tea", 2)),
        opening="I drink tea",
    )
    assert shares(played)["by_order"] == {"1": 1.0, "2": 0.0, "all": 2 / 3}
    changed = (told("Rex"), told("Paris"), told("now Max"))
    assert order_of_telling(changed, 3, "Max") == 3
    assert order_of_telling(changed, 3, "yes") is None


def test_recall_by_what_was_held_leaves_out_what_was_replaced() -> None:
    played = episode(
        told("I live in Rome"),
        turn("tea", Fact("tea", 0)),  # asked with two told
        told("now I live in Oslo"),
        told("how are you?", role="distract"),
        turn("no idea", Fact("Oslo", 3, ("Rome",))),  # three told, one of them replaced
        turn("Oslo", Fact("Oslo", 3, ("Rome",))),
        opening="I drink tea",
    )
    assert shares(played)["held"] == {"2": 2 / 3, "all": 2 / 3}
    many = [told(f"number {n}") for n in range(19)]
    assert shares(episode(*many, turn("4", Fact("4", 5))))["held"] == {"17-32": 1.0, "all": 1.0}


def test_distances_beyond_sixteen_count_together_by_powers_of_two() -> None:
    far = episode(*[turn()] * 40, *[turn("Rex", Fact("Rex", said)) for said in (25, 10, 8, 26)])
    assert recall_by_distance([far])[1] == {"16": 1, "17-32": 2, "33-64": 1, "all": 4}


def row(*values: str) -> Row:
    return Row(
        "q",
        "a",
        tuple(Interaction("q?", value, facts=(Fact(value, i),)) for i, value in enumerate(values)),
    )


def test_most_frequent_answer_comes_from_the_training_data_and_is_judged_on_the_others() -> None:
    held_out = [
        row("Ida", "Rex", "Tom"),
        Row("q", "a", (Interaction("q", "a"), Interaction("q?", "Tom", facts=(Fact("Tom", 0),)))),
    ]
    # Ida and Tom are asked for twice each; the first in the alphabet is taken.
    most = most_frequent_figure({"Rex": 1, "Tom": 2, "Ida": 2}, held_out).share()
    assert most == {"1": 1 / 3, "2": 0.0, "all": 1 / 4}
    assert most_frequent_figure({"Tom": 1}, held_out).share() == {
        "1": 1 / 3,
        "2": 1.0,
        "all": 1 / 2,
    }
    assert most_frequent_figure({}, held_out).share()["all"] == 0.0


def test_intervals_hold_the_share_and_widen_where_answers_of_a_conversation_go_together() -> None:
    hits = np.tile([1, 0, 1, 1], 25)
    alone = Figure({"all": hits}, {"all": np.ones(100, np.int64)}).intervals()["all"]
    together = Figure({"all": hits * 10}, {"all": np.full(100, 10)}).intervals()["all"]
    assert alone[0] < 0.75 < alone[1]
    assert together == pytest.approx(alone)
    sure = Figure(
        {"all": np.tile([1, 0, 1, 1], 250)}, {"all": np.ones(1000, np.int64)}
    ).intervals()["all"]
    assert sure[1] - sure[0] < 0.4 * (alone[1] - alone[0])


def test_a_share_of_all_or_nothing_is_as_sure_as_its_conversations_are_many() -> None:
    def interval(hits: int, conversations: int) -> tuple[float, float]:
        return Figure(
            {"all": np.full(conversations, hits)}, {"all": np.ones(conversations, np.int64)}
        ).intervals()["all"]

    # Wilson's interval of 10 of 10 and of 0 of 10.
    assert interval(1, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)
    assert interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert interval(1, 1000)[0] > 0.99
    assert interval(1, 1)[0] < 0.25


def test_a_few_conversations_that_look_alike_leave_much_open() -> None:
    # 3 of 4 answers in each of two conversations: all draws of them come to 0.75
    low, high = Figure({"all": np.array([3.0, 3.0])}, {"all": np.array([4, 4])}).intervals()["all"]
    # by hand, p = 0.75 of 2 trials, z = 1.96
    z = 1.959964
    half = z * (0.75 * 0.25 / 2 + z * z / 16) ** 0.5
    expected = [(0.75 + z * z / 4 + sign * half) / (1 + z * z / 2) for sign in (-1, 1)]
    assert [low, high] == pytest.approx(expected, abs=1e-6)
    assert low < 0.3 < 0.95 < high


def test_interval_of_a_rare_key_leaves_out_the_draws_without_it() -> None:
    hits, counts = np.zeros((1, 50)), np.zeros((1, 50))
    hits[0, :2], counts[0, :3] = 1, 1
    low, high = bootstrap(hits, counts)
    assert 0 <= low[0] < 2 / 3 < high[0] <= 1
    assert Figure({}, {}).intervals() == {}
