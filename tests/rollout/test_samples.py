"""Several episodes of each task: dealt side by side, alike but for the draws of their answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from common.config.mrl import CurriculumStep
from common.episode import Interaction, Row
from rollout.tasks import Dealer, Memories, Plan, Selection, plan_of
from tests.updates import mrl

ROWS = [Row(f"q{i}", f"a{i}", (Interaction(f"q{i}.0", "a"),)) for i in range(6)]
PLAN = Plan("warm", (Selection(3),), episodes=6, samples=3)


def test_samples_of_a_task_start_alike_and_draw_apart() -> None:
    tasks = Dealer(ROWS, 5).deal(PLAN, 2)
    assert [task.batch_index for task in tasks] == list(range(6))
    assert [task.sample for task in tasks] == [0, 1, 2, 0, 1, 2]
    for group in (tasks[:3], tasks[3:]):
        assert len({(task.row, task.seed, task.environment) for task in group}) == 1
        assert len({task.id for task in group}) == 3
        assert len({task.answer_seed(turn) for task in group for turn in (1, 2)}) == 6
    assert tasks[0].seed != tasks[3].seed


def test_rows_are_dealt_in_turn_whatever_the_samples() -> None:
    dealer, one = Dealer(ROWS, 5), replace(PLAN, episodes=2, samples=1)
    for iteration in range(6):
        names = [task.row.query for task in dealer.deal(PLAN, iteration) if task.row]
        single = [task.row.query for task in dealer.deal(one, iteration) if task.row]
        assert names[::3] == single
    dealt = [t.row.query for i in range(3) for t in dealer.deal(PLAN, i) if t.row]
    assert Counter(dealt) == {row.query: 3 for row in ROWS}


def test_one_sample_a_task_is_dealt_as_ever() -> None:
    task = Dealer(ROWS, 5).deal(replace(PLAN, samples=1), 1)[1]
    assert (task.sample, task.answer_seed(1)) == (0, replace(task, id="other").answer_seed(1))


def test_all_samples_go_on_from_the_memory_that_the_first_left() -> None:
    dealer, plan = Dealer(ROWS, 1), replace(PLAN, reset_probability=0.5, episodes=60)
    leaves = dealer.leaves(plan, 3)
    brought = {
        task.batch_index: f"memory {task.id}".encode()
        for task in dealer.deal(plan, 3)
        if leaves[task.batch_index]
    }
    assert brought
    assert all(index % 3 == 0 for index in brought)
    for task in dealer.deal(plan, 4, Memories(3, "warm", brought)):
        assert task.initial_memory == brought.get(task.batch_index - task.sample)


def test_a_plan_has_the_samples_of_the_algorithm() -> None:
    steps = (CurriculumStep(name="all", iterations=1, max_steps=3),)
    assert plan_of(steps, 0, 8, 4).samples == 4


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"algorithm": "rloo", "episodes": 10}, "10 is no multiple of the 4 samples.*8 or 12"),
        (
            {"algorithm": "ppo", "episodes": 3, "ppo": {"samples": 4}},
            "samples of each task .ppo.samples.; take 4 ",
        ),
        ({"algorithm": "ppo", "ppo": {"kl_estimator": "k1"}}, "k1 in the loss has no gradient"),
        ({"rejection": {"keep_of": "task"}}, "samples above 1"),
        ({"rejection": {"keep_of": "task", "samples": 4, "keep": 4}}, "leaves none out"),
        ({"rejection": {"whiten": True}}, "has no advantages"),
    ],
)
def test_settings_that_cannot_be_met_are_named(stage: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mrl(**stage)
