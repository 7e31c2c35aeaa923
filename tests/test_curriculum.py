"""The curriculum as a state machine, and the ways to write it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from common.config.mrl import MRL, CurriculumStep
from common.failures import InputError
from learner.curriculum import Curriculum, CurriculumState, Ended

SHORT = CurriculumStep(name="short", iterations=2, max_steps=2, reset_probability=1.0)
LONG = CurriculumStep(
    name="long", iterations=3, max_steps=8, reset_probability=0.4, strategy="long_term"
)


def ruled(**settings: Any) -> CurriculumStep:
    shape = {"name": "ruled", "iterations": 9, "max_steps": 2}
    return CurriculumStep.model_validate(shape | {"until": {"rollout/recall": 0.9}} | settings)


def walked(step: CurriculumStep, *recalls: float) -> tuple[Curriculum, list[str]]:
    """The curriculum of the step and another, after iterations with these figures."""
    curriculum = Curriculum([step, LONG])
    told = [curriculum.advance({"rollout/recall": recall}) for recall in recalls]
    return curriculum, [sentence for sentence in told if sentence]


def saved(curriculum: Curriculum) -> CurriculumState:
    return CurriculumState.from_json(json.loads(json.dumps(curriculum.state().to_json())))


def test_iterations_walk_through_the_steps_in_order() -> None:
    curriculum = Curriculum([SHORT, LONG])
    seen = []
    while not curriculum.finished:
        seen.append((curriculum.step.name, curriculum.index, curriculum.done_in_step))
        assert curriculum.advance() is None
    assert seen == [
        ("short", 0, 0),
        ("short", 0, 1),
        ("long", 1, 0),
        ("long", 1, 1),
        ("long", 1, 2),
    ]
    assert curriculum.done == curriculum.total == 5
    with pytest.raises(IndexError):
        _ = curriculum.step


def test_a_step_is_over_when_its_rule_holds_and_not_before() -> None:
    curriculum, told = walked(ruled(), 0.5, 0.89)
    assert (curriculum.index, told) == (0, [])
    curriculum, (told,) = walked(ruled(), 0.5, 0.9)
    assert (curriculum.step, curriculum.done, curriculum.done_in_step) == (LONG, 2, 0)
    assert told == "curriculum: 'ruled' reached rollout/recall 0.9 after 2 iterations"


def test_measurements_in_a_row_must_all_be_high_enough() -> None:
    curriculum, _ = walked(ruled(times=2), 0.95, 0.5, 0.95)
    assert curriculum.index == 0
    curriculum.advance({"rollout/recall": 0.9})
    assert curriculum.index == 1


def test_iterations_without_a_measurement_count_and_change_nothing_else() -> None:
    curriculum = Curriculum([ruled(times=2, iterations=5), LONG])
    for figures in ({"rollout/recall": 0.95}, None, {"rollout/exact": 1.0}):
        curriculum.advance(figures)
    assert (curriculum.index, curriculum.done_in_step) == (0, 3)
    curriculum.advance({"rollout/recall": 0.95})
    assert curriculum.index == 1


def test_every_metric_of_a_rule_must_be_high_enough_at_once() -> None:
    both = {"rollout/recall": 0.9, "objective/scores": 0.5}
    curriculum = Curriculum([ruled(until=both)])
    curriculum.advance({"rollout/recall": 1.0, "objective/scores": 0.4})
    curriculum.advance({"rollout/recall": 0.8, "objective/scores": 0.9})
    assert not curriculum.finished
    curriculum.advance({"rollout/recall": 0.9, "objective/scores": 0.5})
    assert curriculum.finished


def test_a_step_that_does_not_improve_is_given_up_and_the_run_says_so() -> None:
    curriculum, told = walked(ruled(patience=2), 0.5, 0.6, 0.6, 0.55)
    assert curriculum.step is LONG
    assert told == [
        "warning: curriculum: 'ruled' gave up on it after 4 iterations without rollout/recall 0.9 "
        "(best rollout/recall 0.6)"
    ]
    # A new best begins the count anew.
    curriculum, told = walked(ruled(patience=2), 0.5, 0.5, 0.6, 0.6)
    assert (curriculum.index, told) == (0, [])


def test_iterations_bound_a_step_with_a_rule_and_the_run_says_that_it_did_not_hold() -> None:
    curriculum, (told,) = walked(ruled(iterations=2), 0.5, 0.6)
    assert curriculum.step is LONG
    assert told.startswith("warning: curriculum: 'ruled' is over after 2 iterations without")


@pytest.mark.parametrize("at", range(1, 8))
def test_resume_decides_as_the_run_that_was_not_stopped_at_any_iteration(at: int) -> None:
    steps = [ruled(times=2, patience=3), ruled(name="second", patience=2), LONG]
    figures = [{"rollout/recall": value} for value in (0.5, 0.95, 0.95, 0.3, 0.2, 0.1, 0.1, 0.0)]
    whole, first, resumed = Curriculum(steps), Curriculum(steps), Curriculum(steps)
    for each in figures:
        whole.advance(each)
    for each in figures[:at]:
        first.advance(each)
    resumed.load(saved(first))
    for each in figures[at:]:
        resumed.advance(each)
    assert resumed.state() == whole.state()
    assert [step.how for step in whole.state().ended] == ["reached", "given up"]


def test_resume_takes_a_curriculum_extended_but_not_one_rewritten() -> None:
    state = CurriculumState((Ended("short", 2, "iterations"),), 1)
    Curriculum([SHORT, LONG.model_copy(update={"iterations": 9})]).load(state)
    for changed in (
        [SHORT.model_copy(update={"iterations": 1}), LONG],
        [SHORT.model_copy(update={"iterations": 3}), LONG],
        [SHORT.model_copy(update={"name": "brief"}), LONG],
        [SHORT],
    ):
        with pytest.raises(InputError, match="done 3"):
            Curriculum(changed).load(state)
    shorter = Curriculum([SHORT, LONG.model_copy(update={"iterations": 1})])
    shorter.load(state)
    assert shorter.finished


def test_a_finished_curriculum_goes_on_where_its_last_step_got_more_iterations() -> None:
    curriculum = Curriculum([SHORT, LONG])
    for _ in range(5):
        curriculum.advance()
    longer = Curriculum([SHORT, LONG.model_copy(update={"iterations": 7})])
    longer.load(saved(curriculum))
    assert (longer.index, longer.done_in_step, longer.finished) == (1, 3, False)


def test_a_step_that_a_rule_ended_keeps_its_place_whatever_its_bound_is_now() -> None:
    curriculum, _ = walked(ruled(), 0.95)
    bounded = Curriculum([ruled(iterations=50), LONG])
    bounded.load(saved(curriculum))
    assert (bounded.index, bounded.done) == (1, 1)


def test_state_of_before_rules_is_read() -> None:
    state = CurriculumState.from_json({"done": 3, "steps": [["short", 2], ["long", 3]]})
    assert state == CurriculumState((Ended("short", 2, "iterations"),), 1)


# --- how it is written ----------------------------------------------------------------------------


def stage(curriculum: Any, **settings: Any) -> MRL:
    return MRL.model_validate({"stage": "mrl", "curriculum": curriculum, **settings})


@pytest.mark.parametrize(
    ("steps", "lengths"),
    [
        ("exponential(16)", [1, 2, 4, 8, 16]),
        ("exponential(12)", [1, 2, 4, 8, 12]),
        ("exponential( 1 )", [1]),
        ("linear(4)", [1, 2, 3, 4]),
        ([1, 2, 3, 4, 6, 8, 12, 16], [1, 2, 3, 4, 6, 8, 12, 16]),
    ],
)
def test_a_schedule_gives_the_steps_that_could_be_written_out(steps: Any, lengths: Any) -> None:
    shared = {"iterations": 3, "until": {"rollout/recall": 0.9}}
    written = [{"name": f"up to {n}", "max_steps": n} | shared for n in lengths]
    assert stage({"steps": steps} | shared) == stage(written)


def test_exactly_takes_rows_of_one_length_alone() -> None:
    (step,) = stage({"steps": [4], "exactly": True, "iterations": 1}).curriculum
    assert (step.name, step.min_steps, step.max_steps) == ("exactly 4", 4, 4)


@pytest.mark.parametrize(
    ("curriculum", "said"),
    [
        ({"steps": "quadratic(4)", "iterations": 1}, "'quadratic.4.' is no schedule; give linear"),
        ({"steps": "linear(0)", "iterations": 1}, "one follow-up at least"),
        ({"steps": [2, 0], "iterations": 1}, "give numbers of follow-ups"),
        ({"steps": [], "iterations": 1}, "give numbers of follow-ups"),
        ({"iterations": 1}, "None is no schedule"),
        ({"steps": [2], "exactly": "yes", "iterations": 1}, "neither true nor false"),
        ({"steps": [2, 2], "iterations": 1}, "two steps named 'up to 2'"),
        ([SHORT.model_dump() | {"until": {"rollout/recal": 0.5}}], "rollout/recall"),
        ([SHORT.model_dump() | {"until": {"rollout/recall": 1.5}}], "never 1.5"),
        ([SHORT.model_dump() | {"until": {"rollout/recall": 0}}], "never 0"),
        ([SHORT.model_dump() | {"patience": 2}], "`until`, which is empty"),
        ([SHORT.model_dump() | {"min_steps": 3}], "min_steps is 3, more than the 2"),
        ([SHORT.model_dump() | {"strategy": {"single": 0}}], "a weight that is not above 0"),
        ([SHORT.model_dump() | {"strategy": {}}], "names no strategy"),
        ([SHORT.model_dump() | {"until": {"curriculum/recall": 0.9}}], "evaluate_every is 0"),
    ],
)
def test_a_curriculum_that_means_nothing_is_refused(curriculum: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        stage(curriculum)
