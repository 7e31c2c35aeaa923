"""One batch, from tasks to scored and journalled episodes: sampled in groups on the rollout pool,
scored while others sample.

Invariants: what comes out depends on the tasks and the weights alone, not on workers, groups or the
order of arrival; a task that cannot be sampled or scored is counted as failed and left out, and
takes none of its group with it; an infra failure that its retries could not mend ends the batch,
since leaving tasks out for it would make the batch depend on the machines.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, Protocol, TypeVar

import ray

from common.actors.pool import ActorPool
from common.config.run import Run
from common.episode import Episode, Task
from common.failures import DataFailure, DeadlineExceeded, Unavailable
from rollout.journal.journal import Journal
from rollout.tasks import groups

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Scorer(Protocol):
    """Scores episodes for the conductor. It retries infra failures itself, each with a deadline."""

    async def score(self, episodes: Sequence[Episode], state: Mapping[str, Any]) -> list[Episode]:
        """The same episodes with `rewards` and `reward` of each answered turn, or `failure` where a
        turn could not be scored.

        state: what the scorer goes by from the iterations before (`after`); empty before the first,
        and for an evaluation.
        Raises Unavailable where something that it asks is away for longer than it may be waited
        for.
        """
        ...

    def after(self, state: Mapping[str, Any], episodes: Sequence[Episode]) -> dict[str, Any]:
        """The state for the iteration after one that scored `episodes` with `state`. JSON-ready.
        Without side effects."""
        ...

    def observe(self, state: Mapping[str, Any], episodes: Sequence[Episode]) -> None:
        """Record what the whole batch of an iteration shows, which was scored with `state`."""
        ...

    def patience(self, episodes: Sequence[Episode]) -> float:
        """Seconds that `score` can take at the very most, every deadline and every try of its own
        used up."""
        ...

    def waiting_for(self) -> list[str]:
        """Names of what `score` waits for because it is away, for the watchdog."""
        ...

    def stop_waiting(self) -> None:
        """Have whatever waits for it raise Unavailable."""
        ...

    async def metrics(self) -> dict[str, Any]:
        """Metrics since the last call, for `Metrics.merge`."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Collected:
    """Outcome of the tasks of one batch."""

    episodes: list[Episode]
    """In the order of their tasks; all have at least one scored turn."""
    failed: int
    """Tasks left out."""
    failed_turns: int
    """Turns without a score in the episodes that are in."""


class Waits:
    """Current waits, when each began, and how long each phase took so far: for the watchdog and the
    metrics."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Summed over all waits of a phase; concurrent ones add up to more than wall time."""
        self.active: dict[object, tuple[str, str, float]] = {}
        """phase, reason, since (monotonic)."""
        self.moved = time.monotonic()
        """When a wait last ended."""

    @contextmanager
    def __call__(self, phase: str, reason: str) -> Iterator[None]:
        key, began = object(), time.monotonic()
        self.active[key] = (phase, reason, began)
        try:
            yield
        finally:
            del self.active[key]
            self.moved = time.monotonic()
            self.seconds[phase] += self.moved - began


class Disk:
    """The journal on a thread of its own: writes do not block the event loop, and happen in the
    order they were asked for, whatever became of those who asked."""

    def __init__(self, journal: Journal, waits: Waits):
        self.journal = journal
        self._thread, self._waits = ThreadPoolExecutor(1, thread_name_prefix="journal"), waits

    async def __call__(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._waits("journalling", "the disk"):
            return await asyncio.wrap_future(self._thread.submit(write, *args, **kwargs))


class Collector:
    def __init__(self, run: Run, pool: ActorPool, scorer: Scorer, disk: Disk, waits: Waits):
        self._rollout = run.rollout
        self._pool, self._scorer, self._disk, self._waits = pool, scorer, disk, waits
        self.groups_done = self.groups_total = 0
        self._last_failure = ""

    async def collect(
        self,
        iteration: int,
        tasks: Sequence[Task],
        version: int,
        weights: ray.ObjectRef,
        state: Mapping[str, Any],
    ) -> Collected:
        """state: the scorer's (`Scorer.after`).

        Raises InfraFailure or DeadlineExceeded where a group could not be had, Unavailable where it
        could not be scored for now, DataFailure where nothing is left.
        """
        await self._disk(self._disk.journal.dealt, iteration, [task.id for task in tasks])
        dealt = groups(tasks, self._rollout.workers, self._rollout.slots)
        self.groups_done, self.groups_total = 0, len(dealt)
        parts = await together(
            [self._group(iteration, group, version, weights, state) for group in dealt]
        )
        episodes = [episode for part in parts for episode in part]
        if not episodes:
            raise DataFailure(
                f"iteration {iteration}: all {len(tasks)} tasks failed; the last one: "
                f"{self._last_failure}"
            )
        failed_turns = sum(turn.reward is None for episode in episodes for turn in episode.answered)
        return Collected(episodes, len(tasks) - len(episodes), failed_turns)

    async def play(
        self, tasks: Sequence[Task], version: int, weights: ray.ObjectRef
    ) -> list[Episode]:
        """The same without books, for an evaluation: a task that cannot be played is a DataFailure,
        a turn without a score is not.

        Recall needs no reward: what a reward asks and what does not answer leaves turns unscored.
        """

        async def group(tasks: Sequence[Task]) -> list[Episode]:
            reason = f"{tasks[0].id} and {len(tasks) - 1} more"
            with self._waits("evaluating", reason):
                episodes: list[Episode] = await self._pool.call(
                    "sample", list(tasks), version, weights,
                    deadline=self._rollout.deadline, retries=self._rollout.retries,
                    reason=f"evaluating {reason}",
                )  # fmt: skip
                try:
                    return await self._scorer.score(episodes, {})
                except Unavailable as away:
                    log.warning("an evaluation goes on without rewards: %s", away)
                    return episodes

        parts = await together(
            [group(part) for part in groups(tasks, self._rollout.workers, self._rollout.slots)]
        )
        return [episode for part in parts for episode in part]

    async def _group(
        self,
        iteration: int,
        tasks: Sequence[Task],
        version: int,
        weights: ray.ObjectRef,
        state: Mapping[str, Any],
    ) -> list[Episode]:
        reason = f"{tasks[0].id} and {len(tasks) - 1} more"

        async def sample(tasks: Sequence[Task]) -> list[Episode]:
            with self._waits("sampling", reason):
                deadline, retries = self._rollout.deadline, self._rollout.retries
                returned = await self._pool.call(
                    "sample",
                    list(tasks),
                    version,
                    weights,
                    deadline=deadline,
                    retries=retries,
                    reason=f"sampling {reason}",
                )
            return await self._sampled(iteration, tasks, version, returned)

        async def score(episodes: Sequence[Episode]) -> list[Episode]:
            # The scorer has a deadline for every try of its own; this one is for a scorer that
            # forgot.
            limit = self._scorer.patience(episodes)
            with self._waits("scoring", reason):
                try:
                    async with asyncio.timeout(limit):
                        returned = await self._scorer.score(episodes, state)
                except TimeoutError as missed:
                    raise DeadlineExceeded(f"scoring {reason}", limit) from missed
            return await self._scored(iteration, episodes, returned)

        async def unsampled(task: Task, failure: DataFailure) -> None:
            await self._fail(iteration, task.id, f"sampling: {failure}")

        async def unscored(episode: Episode, failure: DataFailure) -> None:
            await self._fail(iteration, episode.task, f"scoring: {failure}")

        episodes = await isolating(sample, tasks, unsampled)
        scored = await isolating(score, episodes, unscored) if episodes else []
        await self._disk(self._disk.journal.arrived, iteration, scored)
        self.groups_done += 1
        return scored

    async def _sampled(
        self, iteration: int, tasks: Sequence[Task], version: int, returned: Sequence[Episode]
    ) -> list[Episode]:
        """Whole episodes of these weights, in the order of their tasks; the others are failed."""
        by_task = {episode.task: episode for episode in returned}
        good = []
        for task in tasks:
            episode = by_task.get(task.id)
            if episode is None:
                await self._fail(
                    iteration, task.id, "sampling: the worker returned no episode for it"
                )
            elif episode.status == "failed":
                why = next(
                    (turn.failure for turn in episode.turns if turn.failure),
                    "the worker gave no reason",
                )
                await self._fail(iteration, task.id, f"sampling: {why}")
            elif episode.weights_version != version:
                await self._fail(
                    iteration,
                    task.id,
                    f"sampling: made with weights {episode.weights_version} in place of {version}",
                )
            else:
                good.append(episode)
        return good

    async def _scored(
        self, iteration: int, episodes: Sequence[Episode], returned: Sequence[Episode]
    ) -> list[Episode]:
        """Episodes with at least one scored turn, in their order; the others are failed."""
        by_id = {episode.id: episode for episode in returned}
        good = []
        for episode in episodes:
            scored = by_id.get(episode.id)
            if scored is None:
                await self._fail(iteration, episode.task, "scoring: the scorer did not return it")
            elif all(turn.reward is None for turn in scored.answered):
                why = next(
                    (turn.failure for turn in scored.answered if turn.failure),
                    "it answered nothing",
                )
                await self._fail(iteration, episode.task, f"scoring: no turn has a score: {why}")
            else:
                good.append(replace(scored, status="scored"))
        return good

    async def _fail(self, iteration: int, task: str, reason: str) -> None:
        self._last_failure = reason
        await self._disk(self._disk.journal.failed, iteration, [task], reason)


async def isolating(
    attempt: Callable[[Sequence[T]], Awaitable[list[Episode]]],
    items: Sequence[T],
    condemn: Callable[[T, DataFailure], Awaitable[None]],
) -> list[Episode]:
    """attempt(items), in halves where it raises DataFailure, down to the single item that is to
    blame.

    So the same items fail whatever company they were in.
    """
    try:
        return await attempt(items)
    except DataFailure as failure:
        if len(items) == 1:
            await condemn(items[0], failure)
            return []
    middle = len(items) // 2
    return [
        *await isolating(attempt, items[:middle], condemn),
        *await isolating(attempt, items[middle:], condemn),
    ]


async def together(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order. The first failure cancels the rest and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as running:
            tasks = [running.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from several
    return [task.result() for task in tasks]
