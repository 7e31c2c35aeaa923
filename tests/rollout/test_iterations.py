"""What an iteration leaves for the next, whoever plays and scores it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from common.episode import Episode, Interaction, Memory, Row, Task
from common.failures import InputError
from rollout.iterations import Iterations, RolloutState
from rollout.tasks import Dealer, Plan, Selection

ROWS = [Row(f"q{i}", "a", (Interaction("q", "a"),)) for i in range(5)]
PLAN = Plan("all", (Selection(1),), episodes=8, reset_probability=0.5)


def count(state: Mapping[str, Any], episodes: Sequence[Episode]) -> dict[str, Any]:
    return {"seen": state.get("seen", 0) + len(episodes)}


def iterations() -> Iterations:
    return Iterations(Dealer(ROWS, seed=3), count)


def play(task: Task) -> Episode:
    """Not named after its task: nothing is to be read from an id."""
    memory = Memory("text", f"left by {task.batch_index} of {task.iteration}".encode())
    return Episode(
        "episode",
        "task",
        task.seed,
        (),
        weights_version=40,
        final_memory=memory if task.return_memory else None,
        iteration=task.iteration,
        batch_index=task.batch_index,
    )


def go(course: Iterations, iteration: int) -> list[Task]:
    """One iteration, of which the first episode is lost."""
    tasks = course.deal(PLAN, iteration)
    kept = course.collected(PLAN, iteration, [play(task) for task in tasks[1:]])
    assert [episode.batch_index for episode in kept if episode.final_memory is not None] == [1]
    course.trained(iteration)
    return tasks


def test_tasks_go_on_from_what_their_index_left_an_iteration_before() -> None:
    course = iterations()
    first, second = go(course, 0), go(course, 1)
    assert [task.batch_index for task in second] == list(range(8))
    leaves = Dealer(ROWS, seed=3).leaves(PLAN, 0)
    left = {task.batch_index for task in first[1:] if leaves[task.batch_index]}
    assert 0 < len(left) < 7
    assert {task.batch_index for task in second if task.initial_memory is not None} == left
    for index in left:
        assert second[index].initial_memory == Memory("text", f"left by {index} of 0".encode())


def test_a_state_read_back_from_json_goes_on_as_if_never_stopped() -> None:
    straight = iterations()
    tasks = [go(straight, iteration) for iteration in range(4)]
    stopped = iterations()
    go(stopped, 0)
    go(stopped, 1)
    record = json.loads(json.dumps(stopped.state(2).to_json()))
    resumed = iterations()
    resumed.load(RolloutState.from_json(record))
    assert resumed.next == 2
    assert [go(resumed, 2), go(resumed, 3)] == tasks[2:]
    assert resumed.state(4) == straight.state(4)
    assert resumed.state(4).scorer == {"seen": 4 * 7}
    assert RolloutState.from_json(RolloutState().to_json()) == RolloutState()


def test_a_batch_that_was_not_trained_on_leaves_nothing_when_it_is_discarded() -> None:
    course = iterations()
    go(course, 0)
    again = course.deal(PLAN, 1)
    before = course.state(1)
    course.collected(PLAN, 1, [play(task) for task in again])
    assert course.state(2).scorer == {"seen": 15}
    course.discard(1)
    assert course.state(2) == RolloutState(2)
    assert (course.next, course.state(1), course.deal(PLAN, 1)) == (1, before, again)
    course.discard(0)
    assert course.state(1) == before, "what was trained on stays"


def test_an_iteration_that_was_trained_is_not_dealt_again_until_a_state_is_loaded() -> None:
    course = iterations()
    first = course.state(0)
    go(course, 0)
    course.require_untrained(1)
    with pytest.raises(InputError, match="iteration 0 was trained, next is 1"):
        course.require_untrained(0)
    course.load(first)
    course.require_untrained(0)
