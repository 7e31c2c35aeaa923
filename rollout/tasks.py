"""Which tasks an iteration has: a pure function of (rows, seed, plan, iteration), never of who is
free or who finished first.

That function is what makes a resumed run deal what the interrupted one would have dealt, and R
workers give the episodes of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

from common.episode import Memory, Row, Strategy, Task
from common.failures import InputError
from common.seeding import derive, uniforms
from rollout.environments.table import ENVIRONMENTS

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """Episodes that the learner asks for in one iteration; its curriculum decides, the conductor
    deals."""

    step: str
    """Name of the curriculum step."""
    max_steps: int
    """Rows with at most this many follow-ups take part; an environment that plays no rows is cut
    off after so many answers."""
    episodes: int
    """Tasks of the iteration, over all ranks."""
    strategy: Strategy | None = None
    """Only rows of this strategy; None: all."""
    reset_probability: float = 1.0
    """Probability of fresh memory; otherwise a task goes on from the memory that the task of the
    same index in the last batch left."""
    teacher_forcing: bool = False


@dataclass(frozen=True, slots=True)
class Memories:
    """Final memories of one iteration's episodes, by index in the batch: what the next iteration
    may start from."""

    iteration: int
    step: str
    by_index: Mapping[int, Memory]


class Dealer:
    """Deals tasks of fixed rows under a fixed seed, in the stage of index `stage` of the run."""

    def __init__(
        self,
        rows: Sequence[Row],
        seed: int,
        stage: int = 0,
        environment: str = "conversation",
    ):
        self._rows, self._seed, self._stage = rows, derive(seed, "stage", stage), stage
        self._environment = environment
        self._plays_rows = ENVIRONMENTS[environment].plays_rows
        self._eligible: dict[tuple[int, Strategy | None], list[int]] = {}

    def deal(self, plan: Plan, iteration: int, memories: Memories | None = None) -> list[Task]:
        """Tasks of an iteration (0 is the first of the stage), in the order of the batch.

        Rows come without repetition until all were dealt, in an order of their own in every pass.
        memories: of the iteration before; a change of step starts afresh, since what a memory holds
        then was said under other rules.
        Raises InputError where no row fits the plan.
        """
        fresh = self.fresh(plan, iteration)
        continues = plan.reset_probability < 1
        leaves = ~self.fresh(plan, iteration + 1)
        held = (
            memories.by_index
            if memories is not None
            and (memories.iteration, memories.step) == (iteration - 1, plan.step)
            else {}
        )
        tasks = []
        for index in range(plan.episodes):
            tasks.append(
                Task(
                    id=f"{self._stage}-{iteration:06d}-{index:05d}",
                    row=self._row(plan, iteration * plan.episodes + index),
                    seed=derive(self._seed, "task", plan.step, iteration, index),
                    step=plan.step,
                    teacher_forcing=plan.teacher_forcing,
                    initial_memory=None if fresh[index] else held.get(index),
                    return_memory=continues and bool(leaves[index]),
                    environment=self._environment,
                    max_turns=None if self._plays_rows else plan.max_steps,
                    iteration=iteration,
                    batch_index=index,
                )
            )
        return tasks

    def fresh(self, plan: Plan, iteration: int) -> np.ndarray:
        """[episodes] bool: which of the batch start from fresh memory in `iteration`. Known one
        iteration ahead, so that only memories that will be used are brought back."""
        keys = np.full(plan.episodes, derive(self._seed, "reset", iteration), dtype=np.int64)
        return uniforms(keys, np.arange(plan.episodes)) < plan.reset_probability

    def _row(self, plan: Plan, number: int) -> Row | None:
        """The row of the step's task `number`, counted over all its iterations; None where the
        environment plays no rows."""
        if not self._plays_rows:
            return None
        eligible = self._fitting(plan)
        lap, position = divmod(number, len(eligible))
        order = _order(derive(self._seed, "order", plan.step, lap), len(eligible))
        return self._rows[eligible[order[position]]]

    def _fitting(self, plan: Plan) -> list[int]:
        key = (plan.max_steps, plan.strategy)
        if key not in self._eligible:
            self._eligible[key] = fitting(self._rows, plan.step, plan.max_steps, plan.strategy)
        return self._eligible[key]


def fitting(rows: Sequence[Row], step: str, max_steps: int, strategy: Strategy | None) -> list[int]:
    """Indices of the rows that take part in a curriculum step. Raises InputError where none
    does."""
    found = [
        i
        for i, row in enumerate(rows)
        if len(row.interactions) <= max_steps and strategy in (None, row.strategy)
    ]
    if not found:
        of = f" of strategy {strategy!r}" if strategy else ""
        raise InputError(
            f"curriculum step {step!r}",
            f"none of {len(rows)} rows{of} has at most {max_steps} follow-ups",
        )
    return found


def groups(tasks: Sequence[T], workers: int, slots: int) -> list[Sequence[T]]:
    """Tasks in groups that give every worker its share, and fill its slots twice where there are
    enough: a slot whose episode is over takes another, and only those that are the last of their
    group wait for nothing."""
    size = max(1, min(2 * slots, -(-len(tasks) // workers)))
    return [tasks[i : i + size] for i in range(0, len(tasks), size)]


def shards(items: Sequence[T], ranks: int) -> list[Sequence[T]]:
    """Round-robin, so that ranks get as many each, whatever was left out."""
    return [items[rank::ranks] for rank in range(ranks)]


@lru_cache(maxsize=8)
def _order(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)
