"""When a run says that it learnt its conversations by heart."""

from __future__ import annotations

import numpy as np
import pytest

from learner.evaluation.memorisation import Measured, learnt_by_heart, measured
from learner.evaluation.retention import Figure


def around(recall: float, width: float = 0.03) -> Measured:
    return Measured(recall, max(0.0, recall - width), min(1.0, recall + width))


def test_a_run_that_knows_only_its_training_rows_says_so() -> None:
    sentence = learnt_by_heart(Measured(1.0, 1.0, 1.0), around(0.18), around(0.17))
    assert sentence is not None
    assert sentence.startswith(
        "learnt by heart: recall is 1.00 on training conversations, but 0.18 on held-out ones, "
        "and 0.17"
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
    train = Measured(1.0, 1.0, 1.0)
    unsure = learnt_by_heart(train, Measured(0.30, 0.15, 0.45), Measured(0.20, 0.10, 0.35))
    assert unsure is not None
    assert learnt_by_heart(train, Measured(0.30, 0.25, 0.35), Measured(0.20, 0.15, 0.25)) is None
    tiny = learnt_by_heart(train, Measured(0.23, 0.225, 0.235), Measured(0.20, 0.195, 0.205))
    assert tiny is not None


def test_too_few_held_out_questions_to_tell_say_nothing() -> None:
    assert (
        learnt_by_heart(Measured(1.0, 1.0, 1.0), Measured(0.5, 0.0, 1.0), Measured(0.5, 0.0, 1.0))
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
    assert measured(figure) == Measured(0.5, 0.0, 1.0)
    assert measured(Figure({}, {})) is None
