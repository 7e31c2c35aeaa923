"""When a run says that it learnt its conversations by heart."""

from __future__ import annotations

import numpy as np
import pytest

from learner.evaluation.figures import Evaluation, Figure
from learner.evaluation.memorisation import Measured, learnt_by_heart, measured, memorised


def around(recall: float, width: float = 0.03) -> Measured:
    return Measured(recall, max(0.0, recall - width), min(1.0, recall + width), 60)


def test_a_run_that_knows_only_its_training_rows_says_so() -> None:
    sentence = learnt_by_heart(Measured(1.0, 1.0, 1.0, 60), around(0.18), around(0.17))
    assert sentence is not None
    assert sentence.startswith(
        "learnt by heart: recall is 1.00 (1.00–1.00, n = 60) on training conversations, but 0.18 "
        "(0.15–0.21, n = 60) on held-out ones, and 0.17"
    )
    assert (
        learnt_by_heart(around(0.96), around(0.15), around(0.18)) is not None
    )  # not even as good as without


@pytest.mark.parametrize(
    ("train", "held_out", "erased"),
    [
        (1.0, 0.95, 0.17),  # learnt to remember
        (1.0, 0.40, 0.17),  # remembers some
        (1.0, 0.97, 0.97),  # nothing to remember
        (0.5, 0.17, 0.17),  # knows little yet
        (0.17, 0.17, 0.17),  # knows nothing
        (0.0, 0.0, 0.0),
    ],
)
def test_a_run_that_learnt_to_remember_or_nothing_at_all_does_not(
    train: float, held_out: float, erased: float
) -> None:
    assert learnt_by_heart(around(train), around(held_out), around(erased)) is None


def test_help_of_memory_counts_where_it_is_sure_and_not_tiny() -> None:
    train = Measured(1.0, 1.0, 1.0, 60)
    unsure = learnt_by_heart(train, Measured(0.30, 0.15, 0.45, 60), Measured(0.20, 0.10, 0.35, 60))
    assert unsure is not None
    assert (
        learnt_by_heart(train, Measured(0.30, 0.25, 0.35, 60), Measured(0.20, 0.15, 0.25, 60))
        is None
    )
    tiny = learnt_by_heart(
        train, Measured(0.23, 0.225, 0.235, 60), Measured(0.20, 0.195, 0.205, 60)
    )
    assert tiny is not None


def test_too_few_held_out_questions_to_tell_say_nothing() -> None:
    assert (
        learnt_by_heart(
            Measured(1.0, 1.0, 1.0, 60), Measured(0.5, 0.0, 1.0, 60), Measured(0.5, 0.0, 1.0, 60)
        )
        is None
    )


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_conversations_that_ask_nothing_say_nothing(missing: int) -> None:
    given: list[Measured | None] = [around(1.0), around(0.2), around(0.2)]
    given[missing] = None
    assert learnt_by_heart(*given) is None


def test_a_figure_is_measured_over_all_its_keys_and_one_that_counts_nothing_is_not() -> None:
    figure = Figure(
        {"1": np.array([1, 0]), "all": np.array([2, 0])},
        {"1": np.array([1, 1]), "all": np.array([2, 2])},
    )
    assert measured(figure) == Measured(0.5, 0.0, 1.0, 4)
    assert measured(Figure({}, {})) is None


def test_conversations_without_facts_are_known_by_heart_by_their_f1() -> None:
    def f1(share: float) -> dict[str, Figure]:
        figure = Figure({"all": np.full(20, share)}, {"all": np.ones(20, np.int64)})
        return {"recall": Figure({}, {}), "f1": figure}

    sentence = memorised(f1(0.97), Evaluation(f1(0.2), f1(0.21), []))
    assert sentence is not None
    assert sentence.startswith("learnt by heart: F1 is 0.97 (0.97–0.97, n = 20) on training")
    assert memorised(f1(0.97), Evaluation(f1(0.9), f1(0.2), [])) is None
