from dataclasses import replace
from typing import Any

import pytest

from common.config.mrl import CurriculumStep
from common.episode import Interaction, Row, Task
from common.failures import InputError
from rollout.tasks import Dealer, Memories, Plan, Selection, groups, plan_of, selections_of, shards

ROWS = [
    Row(
        f"q{i}",
        f"a{i}",
        tuple(Interaction(f"q{i}.{j}", "a") for j in range(1 + i % 3)),
        strategy=("single", "cumulative")[i % 2],
    )
    for i in range(12)
]
PLAN = Plan("warm", (Selection(3),), episodes=4)


def names(tasks: list[Task]) -> list[str]:
    return [task.row.query for task in tasks]


def test_deal_depends_on_rows_seed_step_and_iteration_alone() -> None:
    dealer = Dealer(ROWS, 5)
    later = dealer.deal(PLAN, 7)
    dealer.deal(replace(PLAN, selections=(Selection(1),)), 3)
    assert dealer.deal(PLAN, 7) == later == Dealer(ROWS, 5).deal(PLAN, 7)
    for other in (
        Dealer(ROWS, 6).deal(PLAN, 7),
        Dealer(ROWS, 5, stage=1).deal(PLAN, 7),
        dealer.deal(PLAN, 8),
        dealer.deal(replace(PLAN, step="hot"), 7),
    ):
        assert not {task.seed for task in other} & {task.seed for task in later}


def test_every_row_is_dealt_once_before_any_is_dealt_again() -> None:
    dealer = Dealer(ROWS, 0)
    laps = [
        [name for i in range(lap * 3, lap * 3 + 3) for name in names(dealer.deal(PLAN, i))]
        for lap in range(2)
    ]
    for lap in laps:
        assert sorted(lap) == sorted(row.query for row in ROWS)
    assert laps[0] != laps[1]


def test_only_rows_that_fit_the_plan_are_dealt() -> None:
    tasks = Dealer(ROWS, 0).deal(
        replace(PLAN, selections=(Selection(2, strategy="single"),), episodes=30), 0
    )
    assert {task.row.strategy for task in tasks} == {"single"}
    assert {len(task.row.interactions) for task in tasks} == {1, 2}


def test_plan_that_fits_no_row_is_bad_input_by_the_name_of_its_step() -> None:
    with pytest.raises(InputError, match=r"'warm'.*none of 12 rows of strategy 'long_term'"):
        Dealer(ROWS, 0).deal(replace(PLAN, selections=(Selection(3, strategy="long_term"),)), 0)


def test_tasks_go_on_from_the_memory_left_at_their_index_and_only_needed_ones_are_brought() -> None:
    dealer = Dealer(ROWS, 1)
    plan = replace(PLAN, reset_probability=0.5, episodes=64)
    first = dealer.deal(plan, 3)
    leaves = dealer.leaves(plan, 3)
    brought = {
        task.batch_index: f"memory {task.id}".encode() for task in first if leaves[task.batch_index]
    }
    assert 16 < len(brought) < 48
    assert {task.batch_index for task in first if task.return_memory} == {*brought, 0, 1}
    second = dealer.deal(plan, 4, Memories(3, "warm", brought))
    assert {
        task.batch_index: task.initial_memory for task in second if task.initial_memory is not None
    } == brought
    assert all(
        task.initial_memory is None for task in dealer.deal(plan, 4, Memories(2, "warm", brought))
    )
    assert all(
        task.initial_memory is None
        for task in dealer.deal(replace(plan, step="hot"), 4, Memories(3, "warm", brought))
    )


def test_without_carry_over_a_few_memories_come_back_to_be_compared() -> None:
    dealt = Dealer(ROWS, 1).deal(PLAN, 0)
    assert [task.batch_index for task in dealt if task.return_memory] == [0, 1]


def test_groups_keep_order_and_fill_slots_or_share_among_workers() -> None:
    assert [list(group) for group in groups(range(7), workers=2, slots=32)] == [
        [0, 1, 2, 3],
        [4, 5, 6],
    ]
    assert [len(group) for group in groups(range(10), workers=1, slots=4)] == [8, 2]


def test_shards_differ_by_one_item_at_most() -> None:
    assert [list(shard) for shard in shards(range(7), 3)] == [[0, 3, 6], [1, 4], [2, 5]]


# --- what a curriculum step means for tasks -------------------------------------------------------

LONG_ROWS = [
    Row(
        f"row {i}",
        "a",
        tuple(Interaction(f"q{i}.{j}", "a") for j in range(1 + i % 8)),
        strategy=("single", "cumulative", "long_term")[i % 3],
    )
    for i in range(240)
]


def curriculum(**last: Any) -> list[CurriculumStep]:
    lengths = ((1, {}), (2, {}), (4, last))
    return [
        CurriculumStep.model_validate(
            {"name": f"up to {n}", "iterations": 4, "max_steps": n} | settings
        )
        for n, settings in lengths
    ]


def dealt(steps: list[CurriculumStep], tasks: int = 600) -> list[Row]:
    plan = plan_of(steps, 2, tasks)
    return [task.row for task in Dealer(LONG_ROWS, 3).deal(plan, 0) if task.row is not None]


def test_a_step_of_exactly_n_follow_ups_deals_no_other_row() -> None:
    rows = dealt(curriculum(min_steps=4))
    assert {len(row.interactions) for row in rows} == {4}


def test_strategies_are_mixed_by_weight() -> None:
    rows = dealt(curriculum(strategy={"single": 3, "long_term": 1}))
    share = sum(row.strategy == "single" for row in rows) / len(rows)
    assert {row.strategy for row in rows} == {"single", "long_term"}
    assert 0.7 < share < 0.8


def test_earlier_steps_are_played_again_for_their_share() -> None:
    rows = dealt(curriculum(min_steps=4, earlier=0.4))
    again = [len(row.interactions) for row in rows if len(row.interactions) < 4]
    assert 0.33 < len(again) / len(rows) < 0.47
    # Half of them are of the first step, which has rows of one follow-up alone; half of the second.
    assert 0.6 < sum(length == 1 for length in again) / len(again) < 0.9


def test_the_first_step_has_nothing_to_play_again() -> None:
    steps = [step.model_copy(update={"earlier": 0.5}) for step in curriculum()]
    assert selections_of(steps, 0) == (Selection(1),)


def test_weights_of_a_mixed_step_sum_to_one() -> None:
    steps = curriculum(earlier=0.4, strategy={"single": 3, "long_term": 1})
    selections = selections_of(steps, 2)
    assert [selection.weight for selection in selections] == pytest.approx([0.45, 0.15, 0.2, 0.2])


def test_no_row_comes_twice_before_a_pass_is_over_in_a_mixed_step_either() -> None:
    rows = dealt(curriculum(strategy={"single": 1, "cumulative": 1}), tasks=40)
    assert len({row.query for row in rows}) == len(rows)


def test_a_mixed_step_deals_the_same_whatever_was_dealt_before() -> None:
    plan = plan_of(curriculum(earlier=0.4), 2, 16)
    dealer = Dealer(LONG_ROWS, 3)
    dealer.deal(plan, 0)
    assert dealer.deal(plan, 5) == Dealer(LONG_ROWS, 3).deal(plan, 5)


def test_a_row_that_names_no_strategy_is_played_by_that_of_its_step() -> None:
    rows = [replace(row, strategy="cumulative", strategy_open=True) for row in ROWS[:6]] + ROWS[6:]
    far = replace(PLAN, selections=(Selection(3, strategy="long_term"),), episodes=12)
    dealt = Dealer(rows, 0).deal(far, 0)
    assert {task.strategy for task in dealt} == {"long_term"}
    assert set(names(dealt)) == {row.query for row in ROWS[:6]}
    # without one, as the data have it
    assert {task.strategy for task in Dealer(rows, 0).deal(PLAN, 0)} <= {"single", "cumulative"}
    mixed = tuple(Selection(3, strategy=name, weight=0.5) for name in ("single", "long_term"))
    both = Dealer(rows, 0).deal(replace(PLAN, selections=mixed, episodes=60), 0)
    assert {task.strategy for task in both} == {"single", "long_term"}


def test_a_step_takes_rows_of_its_own_sources() -> None:
    rows = [replace(row, source=("near", "far")[i % 2]) for i, row in enumerate(ROWS)]
    step = CurriculumStep(name="far ones", iterations=1, max_steps=3, sources=("far",))
    dealt = Dealer(rows, 0).deal(plan_of((step,), 0, 6), 0)
    assert {task.row.source for task in dealt} == {"far"}
    only = Selection(1, sources=("nowhere",))
    with pytest.raises(InputError, match="none of 12 rows in nowhere has exactly 1"):
        Dealer(rows, 0).deal(replace(PLAN, selections=(only,)), 0)
