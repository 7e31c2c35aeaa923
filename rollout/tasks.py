"""Which tasks an iteration has: a pure function of (rows, seed, plan, iteration), never of who is
free or who finished first.

That function is what makes a resumed run deal what the interrupted one would have dealt, and R
workers give the episodes of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np

from common.config.mrl import CurriculumStep
from common.episode import Memory, Row, Strategy, Task
from common.failures import InputError
from common.seeding import derive, uniforms
from rollout.environments.table import ENVIRONMENTS

T = TypeVar("T")

COMPARED = 2
"""Tasks of each iteration, the first ones, whose last memories go to the learner, which compares
them with those that it computes."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows that take part in a curriculum step."""

    max_steps: int
    """Follow-ups of the longest."""
    min_steps: int = 1
    """Follow-ups of the shortest."""
    strategy: Strategy | None = None
    """Only rows of this strategy; None: all."""
    weight: float = 1.0
    """Share of the step's tasks."""
    sources: tuple[str, ...] = ()
    """Only rows of these sources; empty: all."""

    def admits(self, row: Row) -> bool:
        fits = self.min_steps <= len(row.interactions) <= self.max_steps
        strategy_fits = row.strategy_open or self.strategy in (None, row.strategy)
        return fits and strategy_fits and (not self.sources or row.source in self.sources)

    def as_played(self, row: Row) -> Row:
        """An admitted row, with the strategy that it is played by."""
        if self.strategy is None or not row.strategy_open:
            return row
        return replace(row, strategy=self.strategy)

    @property
    def lengths(self) -> str:
        """For messages: "at most 4 follow-ups"."""
        many = f"{self.min_steps} to {self.max_steps}"
        if self.min_steps == self.max_steps:
            many = f"exactly {self.max_steps}"
        elif self.min_steps == 1:
            many = f"at most {self.max_steps}"
        return f"{many} follow-ups"


@dataclass(frozen=True, slots=True)
class Plan:
    """Episodes that the learner asks for in one iteration; its curriculum decides, the conductor
    deals."""

    step: str
    """Name of the curriculum step."""
    selections: tuple[Selection, ...]
    """Rows to draw from; an environment that plays no rows is cut off after `longest` answers."""
    episodes: int
    """Tasks of the iteration, over all ranks."""
    samples: int = 1
    """Tasks that start alike, side by side in the batch; divides `episodes`."""
    reset_probability: float = 1.0
    """Probability of fresh memory; otherwise a task goes on from the memory that the task of the
    same index in the last batch left."""
    teacher_forcing: bool = False

    @property
    def longest(self) -> int:
        return max(selection.max_steps for selection in self.selections)


def plan_of(steps: Sequence[CurriculumStep], index: int, episodes: int, samples: int = 1) -> Plan:
    """An iteration of `episodes` tasks, `samples` of each start, in step number `index` of a
    curriculum."""
    step = steps[index]
    chosen = selections_of(steps, index)
    return Plan(step.name, chosen, episodes, samples, step.reset_probability, step.teacher_forcing)


def selections_of(steps: Sequence[CurriculumStep], index: int) -> tuple[Selection, ...]:
    """Rows of step number `index`: its own, and those of the steps before it for its share
    `earlier`. Weights sum to 1."""
    step, before = steps[index], steps[:index]
    again = step.earlier if before else 0.0
    own = own_selections(step, 1.0 - again)
    if not again:
        return own
    earlier = (own_selections(each, again / len(before)) for each in before)
    return (*own, *(selection for each in earlier for selection in each))


def own_selections(step: CurriculumStep, weight: float = 1.0) -> tuple[Selection, ...]:
    """Rows of a step itself, one selection for each of its strategies."""
    return tuple(
        Selection(step.max_steps, step.min_steps, strategy, share * weight, step.sources)
        for strategy, share in step.strategies.items()
    )


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
        self._eligible: dict[Selection, list[int]] = {}

    def deal(self, plan: Plan, iteration: int, memories: Memories | None = None) -> list[Task]:
        """Tasks of an iteration (0 is the first of the stage), in the order of the batch.

        Rows come without repetition until all were dealt, in an order of their own in every pass.
        Each is dealt `plan.samples` times in a row: with the same seed, memory and environment, and
        answers drawn apart.
        memories: of the iteration before; a change of step starts afresh, since what a memory holds
        then was said under other rules.
        Raises InputError where no row fits the plan.
        """
        fresh = self.fresh(plan, iteration)
        leaves = self.leaves(plan, iteration)
        held = (
            memories.by_index
            if memories is not None
            and (memories.iteration, memories.step) == (iteration - 1, plan.step)
            else {}
        )
        tasks, starts = [], plan.episodes // plan.samples
        for index in range(plan.episodes):
            start, sample = divmod(index, plan.samples)
            first = index - sample
            tasks.append(
                Task(
                    id=f"{self._stage}-{iteration:06d}-{index:05d}",
                    row=self._row(plan, iteration * starts + start),
                    seed=derive(self._seed, "task", plan.step, iteration, first),
                    step=plan.step,
                    teacher_forcing=plan.teacher_forcing,
                    initial_memory=None if fresh[first] else held.get(first),
                    return_memory=bool(leaves[index]) or index < COMPARED,
                    environment=self._environment,
                    max_turns=None if self._plays_rows else plan.longest,
                    iteration=iteration,
                    batch_index=index,
                    sample=sample,
                )
            )
        return tasks

    def leaves(self, plan: Plan, iteration: int) -> np.ndarray:
        """[episodes] bool: which of the batch leave their memory to the next iteration: of the
        samples of a task the first. Known ahead, so that only memories that will be used are
        kept."""
        first = np.arange(plan.episodes) % plan.samples == 0
        return first & ~self.fresh(plan, iteration + 1)

    def fresh(self, plan: Plan, iteration: int) -> np.ndarray:
        """[episodes] bool: which of the batch start from fresh memory in `iteration`."""
        keys = np.full(plan.episodes, derive(self._seed, "reset", iteration), dtype=np.int64)
        return uniforms(keys, np.arange(plan.episodes)) < plan.reset_probability

    def _row(self, plan: Plan, number: int) -> Row | None:
        """The row of the step's task `number`, counted over all its iterations; None where the
        environment plays no rows.

        With several selections each task draws one of them. A task's number decides its place in
        the order of the rows all the same, so that none of them comes twice in a pass.
        """
        if not self._plays_rows:
            return None
        selection = self._selection(plan, number)
        eligible = self._fitting(plan.step, selection)
        lap, position = divmod(number, len(eligible))
        order = _order(derive(self._seed, "order", plan.step, lap), len(eligible))
        return selection.as_played(self._rows[eligible[order[position]]])

    def _selection(self, plan: Plan, number: int) -> Selection:
        if len(plan.selections) == 1:
            return plan.selections[0]
        seed = derive(self._seed, "selection", plan.step)
        drawn = float(uniforms(np.array([seed]), np.array([number]))[0])
        for selection in plan.selections:
            drawn -= selection.weight
            if drawn < 0:
                return selection
        return plan.selections[-1]

    def _fitting(self, step: str, selection: Selection) -> list[int]:
        if selection not in self._eligible:
            self._eligible[selection] = fitting(self._rows, step, selection)
        return self._eligible[selection]


def fitting(rows: Sequence[Row], step: str, selection: Selection) -> list[int]:
    """Indices of the rows that take part in a curriculum step. Raises InputError where none
    does."""
    found = [i for i, row in enumerate(rows) if selection.admits(row)]
    if not found:
        of = f" of strategy {selection.strategy!r}" if selection.strategy else ""
        among = f" in {', '.join(selection.sources)}" if selection.sources else ""
        raise InputError(
            f"curriculum step {step!r}",
            f"none of {len(rows)} rows{of}{among} has {selection.lengths}",
        )
    return found


def fitting_any(rows: Sequence[Row], steps: Sequence[CurriculumStep]) -> list[Row]:
    """The rows that fit one of the steps."""
    chosen = [selection for step in steps for selection in own_selections(step)]
    return [row for row in rows if any(selection.admits(row) for selection in chosen)]


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
