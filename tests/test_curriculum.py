"""The curriculum as a state machine."""

from __future__ import annotations

import json

import pytest

from common.config.mrl import CurriculumStep
from common.failures import InputError
from learner.curriculum import Curriculum, CurriculumState

SHORT = CurriculumStep(name="short", iterations=2, max_steps=2, reset_probability=1.0)
LONG = CurriculumStep(
    name="long", iterations=3, max_steps=8, reset_probability=0.4, strategy="long_term"
)


def test_iterations_walk_through_the_steps_in_order() -> None:
    curriculum = Curriculum([SHORT, LONG])
    seen = []
    while not curriculum.finished:
        seen.append((curriculum.step.name, curriculum.done_in_step, curriculum.advance()))
    assert seen == [
        ("short", 0, False),
        ("short", 1, True),
        ("long", 0, False),
        ("long", 1, False),
        ("long", 2, False),
    ]
    with pytest.raises(IndexError, match="iteration 5 of a curriculum of 5"):
        _ = curriculum.step


def test_resume_continues_at_the_same_place() -> None:
    before, after = Curriculum([SHORT, LONG]), Curriculum([SHORT, LONG])
    for _ in range(3):
        before.advance()
    after.load(CurriculumState.from_json(json.loads(json.dumps(before.state().to_json()))))
    assert (after.step, after.done_in_step, after.done) == (LONG, 1, 3)


def test_resume_takes_a_curriculum_extended_but_not_one_rewritten() -> None:
    state = CurriculumState(3, (("short", 2), ("long", 3)))
    Curriculum([SHORT, LONG.model_copy(update={"iterations": 9})]).load(state)
    for changed in (
        [SHORT.model_copy(update={"iterations": 1}), LONG],
        [SHORT.model_copy(update={"iterations": 3}), LONG],
        [SHORT, LONG.model_copy(update={"name": "longer"})],
        [SHORT],
    ):
        with pytest.raises(InputError, match="done 3"):
            Curriculum(changed).load(state)
