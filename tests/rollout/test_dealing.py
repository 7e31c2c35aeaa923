from dataclasses import replace

import pytest

from common.episode import Interaction, Row, Task
from common.failures import InputError
from rollout.tasks import Dealer, Memories, Plan, groups, shards

ROWS = [
    Row(
        f"q{i}",
        f"a{i}",
        tuple(Interaction(f"q{i}.{j}", "a") for j in range(1 + i % 3)),
        strategy=("single", "cumulative")[i % 2],
    )
    for i in range(12)
]
PLAN = Plan(step="warm", max_steps=3, episodes=4)


def names(tasks: list[Task]) -> list[str]:
    return [task.row.query for task in tasks]


def test_deal_depends_on_rows_seed_step_and_iteration_alone() -> None:
    dealer = Dealer(ROWS, 5)
    later = dealer.deal(PLAN, 7)
    dealer.deal(replace(PLAN, max_steps=1), 3)
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
    tasks = Dealer(ROWS, 0).deal(replace(PLAN, max_steps=2, strategy="single", episodes=30), 0)
    assert {task.row.strategy for task in tasks} == {"single"}
    assert {len(task.row.interactions) for task in tasks} == {1, 2}


def test_plan_that_fits_no_row_is_bad_input_by_the_name_of_its_step() -> None:
    with pytest.raises(InputError, match=r"'warm'.*none of 12 rows of strategy 'long_term'"):
        Dealer(ROWS, 0).deal(replace(PLAN, strategy="long_term"), 0)


def test_tasks_go_on_from_the_memory_left_at_their_index_and_only_needed_ones_are_brought() -> None:
    dealer = Dealer(ROWS, 1)
    plan = replace(PLAN, reset_probability=0.5, episodes=64)
    first = dealer.deal(plan, 3)
    brought = {
        task.batch_index: f"memory {task.id}".encode() for task in first if task.return_memory
    }
    assert 16 < len(brought) < 48
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


def test_without_carry_over_no_memory_is_brought_back() -> None:
    assert not any(task.return_memory for task in Dealer(ROWS, 1).deal(PLAN, 0))


def test_groups_keep_order_and_fill_slots_or_share_among_workers() -> None:
    assert [list(group) for group in groups(range(7), workers=2, slots=32)] == [
        [0, 1, 2, 3],
        [4, 5, 6],
    ]
    assert [len(group) for group in groups(range(10), workers=1, slots=4)] == [8, 2]


def test_shards_differ_by_one_item_at_most() -> None:
    assert [list(shard) for shard in shards(range(7), 3)] == [[0, 3, 6], [1, 4], [2, 5]]
