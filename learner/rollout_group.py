"""The rollout half of an MRL run, as the driver owns it: workers, reward pool and conductor.
Learner ranks come and go beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from common.actors.ask import ask
from common.config.run import Run
from common.data.conversations import value_counts
from common.data.corpus import Corpus
from common.episode import Episode, Task
from common.failures import InfraFailure
from common.storage.checkpoint import Checkpoint
from learner.evaluation.measure import reward_embedding
from learner.interrupts import counted
from learner.parallel.group import Job
from learner.policies.table import open_policy
from learner.recorder import RecorderClient
from reward_service.pool import RewardPool
from rollout.collector import Scorer
from rollout.conductor import launch
from rollout.policies.table import PolicyShape
from rollout.worker import RolloutWorker

log = logging.getLogger(__name__)

CLOSE_SECONDS = 30.0
GIVE_UP_SECONDS = 5.0
"""The same after a failure or an interrupt, of which the conductor may know nothing, or be only
starting."""


def conductor_name(namespace: str) -> str:
    return f"{namespace}-conductor"


class RolloutGroup:
    """Start with `with`; leaving ends every actor in it. on_wait: called time and again while the
    driver waits for something here."""

    def __init__(
        self, job: Job, checkpoint: Checkpoint, corpus: Corpus, on_wait: Callable[[], None]
    ):
        run = job.run
        opened = open_policy(checkpoint)
        shape = opened.shape()
        embedding = reward_embedding(checkpoint, job.stage)
        special, known = opened.special_ids, list(value_counts(corpus.train))

        def make_workers() -> Sequence[ActorHandle]:
            return start_workers(run, shape)

        def make_scorer() -> Scorer:
            # In the conductor's process: what its rewards wait for is told to whoever watches the
            # run.
            return RewardPool(
                run.rewards, embedding, special, known, RecorderClient.connect(job.namespace).note
            )

        self.job, self.run, self._on_wait = job, run, on_wait
        self.conductor = launch(
            conductor_name(job.namespace),
            run,
            corpus.train,
            make_workers,
            make_scorer,
            job.directory,
            job.stage,
            job.namespace,
        )

    def __enter__(self) -> RolloutGroup:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # a first interrupt leaves it the time to close its books; whoever counts looks at it
            # afterwards
            with counted():
                ask(
                    self.conductor,
                    "close",
                    deadline=CLOSE_SECONDS if kind is None else GIVE_UP_SECONDS,
                    reason="the conductor to close its journal",
                )
        except InfraFailure as unclosed:
            if kind is None:
                raise
            log.warning(
                "the conductor was ended before it had closed its books; a resume does that: %s",
                unclosed,
            )
        finally:
            ray.kill(self.conductor)

    def play(self, checkpoint: Checkpoint, tasks: Sequence[Task]) -> list[Episode]:
        """Episodes of `tasks` with a checkpoint's weights, scored, outside the books. Not while a
        learner group is running."""
        weights = open_policy(checkpoint).weights(checkpoint.step)
        version = weights.version
        self._ask("publish", version, [ray.put(weights)], reason="weights for an evaluation")
        return self._ask(
            "play", list(tasks), version, reason=f"{len(tasks)} episodes of an evaluation"
        )

    def stop_waiting(self) -> None:
        """Have ranks that wait for a batch, which waits for an endpoint that is away, be told so
        now."""
        self.conductor.stop_waiting.remote()

    def status(self) -> Any:
        return self._ask("status", reason="the conductor's status")

    def _ask(self, method: str, *args: Any, reason: str) -> Any:
        rollout = self.run.rollout
        limit = 2 * rollout.deadline * (rollout.retries + 1) + self.run.rewards.outage_patience()
        return ask(
            self.conductor, method, *args, deadline=limit, reason=reason, on_wait=self._on_wait
        )


def start_workers(run: Run, shape: PolicyShape) -> list[ActorHandle]:
    rollout = run.rollout
    make: Any = ray.remote(RolloutWorker).options(
        num_cpus=rollout.threads,
        num_gpus=rollout.gpus_per_worker,
        label_selector=rollout.node_labels,
        max_restarts=rollout.restarts,
        max_task_retries=0,
    )
    return [
        make.remote(shape, rollout, run.name, index, run.environment)
        for index in range(rollout.workers)
    ]
