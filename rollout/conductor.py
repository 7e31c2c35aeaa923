"""The conductor of a run's rollout half, in synchronous mode: publishes weights, deals tasks, hands
out batches, keeps the books.

One asyncio actor, thin over `dealing`, `collector`, `journal` and the pool. Learner ranks find it
by name and call `publish` (rank 0), `next_batch` (all), `mark_trained` (rank 0).

Invariants: one batch per iteration, the same for all ranks, whatever order actors finish in (3);
dealt == trained + dropped + failed + in flight (5); a worker that died serves after it verified the
current weights (6); an iteration that was trained is not dealt again before `load_state` took
the books back, so that nothing is trained twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from common.actors.pool import ActorPool
from common.actors.resources import CONDUCTOR_CPUS
from common.config.run import Run
from common.episode import Episode, Row, Task
from common.failures import DeadlineExceeded, EngramError, InfraFailure, InputError
from common.storage.run_directory import RunDirectory
from common.telemetry.logs import setup_logging
from common.telemetry.metrics import Metrics
from common.weights import PackedWeights, verify
from rollout.collector import Collected, Collector, Disk, Scorer, Waits
from rollout.iterations import Iterations, RolloutState
from rollout.journal.journal import open_journal
from rollout.metrics import record_books, record_waits
from rollout.tasks import Dealer, Plan, shards

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """Outcome of publishing a weights version."""

    version: int
    acknowledged: tuple[int, ...]
    """Workers that verified and loaded it."""
    stale: tuple[int, ...]
    """Workers that did not; they are out of service until they have."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of one iteration."""

    iteration: int
    version: int
    """Weights that all its episodes were made with."""
    shard: tuple[ray.ObjectRef, ...]
    """Each a list[Episode]; together, in order, this rank's episodes."""
    episodes: int
    """In the whole batch, over all ranks."""
    failed: int
    """Tasks of the whole batch that were left out."""
    failed_turns: int
    """Turns of the whole batch that have no score."""


@dataclass(slots=True)
class Held:
    """The batch of the current iteration, or its making."""

    iteration: int
    version: int
    plan: Plan
    making: asyncio.Task[Collected]
    shards: dict[int, list[ray.ObjectRef]] = field(default_factory=dict)
    """By number of ranks, made when first asked for."""


class Conductor:
    """stage: index in the run; iterations count within it. make_workers, make_scorer: called here
    once.

    Workers (`rollout/worker.py`) are `PooledActor`s with `sample(tasks, version, weights) ->
    list[Episode]` and `set_weights(weights) -> version`, which verify what they load.
    """

    def __repr__(self) -> str:
        """Its role in the run, under which Ray shows it and its log is kept."""
        return "conductor"

    def __init__(
        self,
        run: Run,
        rows: Sequence[Row],
        make_workers: Callable[[], Sequence[ActorHandle]],
        make_scorer: Callable[[], Scorer],
        directory: RunDirectory,
        stage: int = 0,
    ):
        setup_logging("conductor", directory)
        self._run = run
        self._waits = Waits()
        self._pool = ActorPool("rollout", make_workers(), self._bring_up_to_date)
        self._scorer = make_scorer()
        self._disk = Disk(open_journal(directory, stage), self._waits)
        dealer = Dealer(rows, run.seed, stage, run.environment.kind)
        self._iterations = Iterations(dealer, self._scorer.after)
        self._collector = Collector(run, self._pool, self._scorer, self._disk, self._waits)
        self._version: int | None = None
        self._weights: ray.ObjectRef | None = None
        self._held: Held | None = None
        self._one_at_a_time = asyncio.Lock()
        self._metrics = Metrics()
        self._waited: dict[str, float] = {}

    # --- weights ----------------------------------------------------------------------------------

    async def publish(self, version: int, weights: list[ray.ObjectRef]) -> Published:
        """Bring `weights` ([reference of PackedWeights], in a list so that Ray leaves it alone) to
        all workers.

        Returns when every worker in service has verified and loaded them or was taken out of
        service.
        Raises WeightsCorrupt before any worker is touched; DeadlineExceeded or InfraFailure where
        they could not be fetched.
        """
        deadline, reason = self._run.rollout.deadline, f"weights version {version}"
        with self._waits("publishing", reason):
            try:
                packed: PackedWeights = await asyncio.wait_for(_value(weights[0]), deadline)
            except TimeoutError as missed:
                raise DeadlineExceeded(f"{reason} to arrive", deadline) from missed
            except RayError as lost:
                raise InfraFailure(
                    f"{reason} were lost on their way: {type(lost).__name__}"
                ) from lost
            if packed.version != version:
                raise InputError(
                    "weights", f"published as version {version}, packed as {packed.version}"
                )
            await asyncio.to_thread(verify, packed)
            # Owned here from now on: a learner rank that dies must not take the workers' weights
            # with it.
            self._version, self._weights = version, await asyncio.to_thread(ray.put, packed)
            outcomes = await self._pool.broadcast(
                "set_weights", self._weights, deadline=deadline, reason=reason
            )
        for actor, outcome in outcomes.items():
            if outcome != version:
                self._pool.outdated(actor, f"did not take {reason}: {outcome}")
        acknowledged = tuple(actor for actor, outcome in outcomes.items() if outcome == version)
        stale = tuple(actor for actor in self._pool.fleet.members if actor not in acknowledged)
        self._metrics.record("sync/failures", len(stale))
        return Published(version, acknowledged, stale)

    async def _bring_up_to_date(self, actor: int) -> None:
        """Before a worker that died, or missed a version, serves again."""
        if self._weights is not None:
            version, deadline = self._version, self._run.rollout.deadline
            with self._waits("restoring", f"worker {actor}"):
                answer = await self._pool.call_actor(
                    actor,
                    "set_weights",
                    self._weights,
                    deadline=deadline,
                    reason=f"weights version {version}",
                )
            if answer != version:
                raise InfraFailure(
                    f"worker {actor} answered version {answer} to weights version {version}"
                )

    # --- batches ----------------------------------------------------------------------------------

    async def next_batch(
        self, iteration: int, version: int, rank: int, ranks: int, plan: Plan
    ) -> Batch:
        """This rank's part of the batch of `iteration`, made with weights `version`, which must be
        the published ones.

        The first rank to ask starts it. Asked again, the same batch; after it failed, or with other
        weights, it is made anew, of the same tasks. Raises DataFailure, InfraFailure,
        DeadlineExceeded as `Collector.collect` does.
        """
        if self._weights is None or version != self._version:
            raise InputError(
                "next_batch", f"asked for weights version {version}, published is {self._version}"
            )
        self._iterations.require_untrained(iteration)
        async with self._one_at_a_time:
            held = self._held
            if (
                held is None
                or (held.iteration, held.version, held.plan) != (iteration, version, plan)
                or _failed(held.making)
            ):
                await self._discard("superseded before it was trained on")
                making = asyncio.create_task(self._make(iteration, version, plan, self._weights))
                held = self._held = Held(iteration, version, plan, making)
        try:
            # A rank that goes away must not take the batch of the others with it.
            collected = await asyncio.shield(held.making)
        except asyncio.CancelledError:
            if held.making.cancelled():
                raise InfraFailure(
                    f"the batch of iteration {iteration} was given up while it was made"
                ) from None
            raise
        if ranks not in held.shards:
            held.shards[ranks] = [
                ray.put(list(shard)) for shard in shards(collected.episodes, ranks)
            ]
        shard = (held.shards[ranks][rank],)
        return Batch(
            iteration,
            version,
            shard,
            len(collected.episodes),
            collected.failed,
            collected.failed_turns,
        )

    async def _make(
        self, iteration: int, version: int, plan: Plan, weights: ray.ObjectRef
    ) -> Collected:
        """Deal and collect, and settle the accounts before any rank sees the batch or its
        failure."""
        tasks = self._iterations.deal(plan, iteration)
        scorer_state = self._iterations.state(iteration).scorer
        try:
            collected = await self._collector.collect(
                iteration, tasks, version, weights, scorer_state
            )
        except EngramError as failure:
            await self._disk(
                self._disk.journal.give_up, iteration, f"its batch failed: {type(failure).__name__}"
            )
            raise
        episodes = self._iterations.collected(plan, iteration, collected.episodes)
        self._scorer.observe(scorer_state, collected.episodes)
        return replace(collected, episodes=episodes)

    async def _discard(self, reason: str) -> None:
        """Let go of the held batch; what of it was not trained on is dropped."""
        held, self._held = self._held, None
        if held is not None:
            held.making.cancel()
            await asyncio.gather(held.making, return_exceptions=True)
            self._iterations.discard(held.iteration)
            await self._disk(self._disk.journal.give_up, held.iteration, reason)

    async def mark_trained(self, iteration: int, version: int) -> int:
        """The held batch was trained on and gave weights `version`; returns how many episodes that
        were."""
        held = self._held
        if (
            held is None
            or held.iteration != iteration
            or iteration < self._iterations.next
            or not held.making.done()
        ):
            raise InputError(
                "mark_trained",
                f"iteration {iteration} is not one that was handed out and not yet trained on",
            )
        count = await self._disk(self._disk.journal.trained, iteration, version)
        self._iterations.trained(iteration)
        return count

    async def play(self, tasks: Sequence[Task], version: int) -> list[Episode]:
        """Episodes of `tasks` in their order, scored, with the published weights `version`: for an
        evaluation, outside books and journal.

        Raises DataFailure where a task cannot be played, InfraFailure and DeadlineExceeded as
        `next_batch` does.
        """
        if self._weights is None or version != self._version:
            raise InputError(
                "play", f"asked for weights version {version}, published is {self._version}"
            )
        episodes = await self._collector.play(tasks, version, self._weights)
        # taken and let go: rewards and speed of an evaluation must not pass for those of training
        await self.metrics()
        return episodes

    # --- checkpoints ------------------------------------------------------------------------------

    async def state(self) -> RolloutState:
        """State after the last trained iteration; also seals the journal, so call it for every
        checkpoint."""
        await self._disk(self._disk.journal.seal)
        return self._iterations.state(self._iterations.next)

    async def load_state(self, state: RolloutState) -> None:
        """Go on after that state: later iterations are dropped from the books, and will be dealt
        again."""
        async with self._one_at_a_time:
            await self._discard("its run went back")
            self._iterations.load(state)
            await self._disk(self._disk.journal.roll_back, state.iteration)

    # --- what is going on -------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """For the watchdog: the phase that has been waited in longest, all waits, and the
        workers."""
        now = time.monotonic()
        waits = sorted(
            ((now - since, phase, reason) for phase, reason, since in self._waits.active.values()),
            reverse=True,
        )
        seconds, phase, reason = (
            waits[0] if waits else (now - self._waits.moved, "idle", "the learner")
        )
        return {
            "phase": phase,
            "reason": reason,
            "seconds": seconds,
            "waits": [
                {"phase": phase, "reason": reason, "seconds": seconds}
                for seconds, phase, reason in waits
            ],
            "iteration": held.iteration if (held := self._held) else self._iterations.next,
            "version": self._version,
            "groups": {"done": self._collector.groups_done, "all": self._collector.groups_total},
            "workers": self._pool.stats(),
            "away": self._scorer.waiting_for(),
        }

    async def stop_waiting(self) -> None:
        """Give up what waits for something that is away (`Unavailable`): the run is to stop."""
        self._scorer.stop_waiting()

    async def metrics(self) -> dict[str, Any]:
        """Metrics of workers, scorer and conductor since the last call, and the books as they are,
        for `Metrics.merge`."""
        record_books(self._metrics, self._disk.journal.books)
        self._waited = record_waits(self._metrics, self._waits.seconds, self._waited)
        self._pool.record(self._metrics)
        for state in await self._pool.metrics_of_healthy(self._run.rollout.deadline):
            self._metrics.merge(state)
        self._metrics.merge(await self._scorer.metrics())
        return self._metrics.drain()

    async def close(self) -> None:
        """Drop what is in flight, seal the journal, end workers and scorer."""
        async with self._one_at_a_time:
            await self._discard("the run ended")
        await self._disk(self._disk.journal.close)
        await self._pool.close()
        await self._scorer.close()


def launch(
    name: str,
    run: Run,
    rows: Sequence[Row] | ray.ObjectRef,
    make_workers: Callable[[], Sequence[ActorHandle]],
    make_scorer: Callable[[], Scorer],
    directory: RunDirectory,
    stage: int = 0,
    namespace: str | None = None,
) -> ActorHandle:
    """The conductor as an actor that learner ranks find by `name` in `namespace` (None: the
    driver's). The driver owns it."""
    actor = ray.remote(Conductor).options(name=name, namespace=namespace, num_cpus=CONDUCTOR_CPUS)
    return cast(ActorHandle, actor.remote(run, rows, make_workers, make_scorer, directory, stage))


async def _value(reference: ray.ObjectRef) -> Any:
    return await reference


def _failed(making: asyncio.Task[Collected]) -> bool:
    return making.done() and (making.cancelled() or making.exception() is not None)
