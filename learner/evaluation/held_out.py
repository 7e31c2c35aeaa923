"""Held-out recall while a stage trains: rank 0 plays conversations with an engine of its own, as
they are played in use."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from common.config.run import Run
from common.data.conversations import value_counts
from common.episode import Episode, Row, Task
from common.telemetry.metrics import Metrics
from learner.evaluation.evaluate import (
    carried_tasks,
    evaluation_rows,
    evaluation_tasks,
    played_figures,
)
from learner.evaluation.figures import Figure
from learner.evaluation.transcripts import transcripts
from learner.metrics import record_figures_of_facts
from learner.policies.table import CheckpointPolicy
from rollout.policies.play import play
from rollout.protocols import Policy

LARGEST_BATCH = 64

log = logging.getLogger(__name__)


class HeldOut:
    """Some held-out conversations, and what plays them."""

    def __init__(self, trained: CheckpointPolicy, rows: Sequence[Row], train: Sequence[Row]):
        """rows: all that are held out. train: training conversations, whose values count as known
        ones."""
        self._trained, self.rows, self._values = trained, rows, list(value_counts(train))
        self._policy: Policy | None = None

    def measure(self, run: Run, conversations: int, metrics: Metrics) -> None:
        """Record the figures of facts with the weights as they are now, and the time it took. The
        model's own answers go to memory."""
        started = time.perf_counter()
        rows = evaluation_rows(self.rows, conversations)
        record_figures_of_facts(self.figures(run, rows), metrics)
        seconds = time.perf_counter() - started
        metrics.record("time/phase_seconds", seconds, phase="evaluate", role="learner")

    def figures(self, run: Run, rows: Sequence[Row], carried: bool = False) -> dict[str, Figure]:
        """Figures of some conversations with the weights as they are now. carried: each begins with
        the memory that another one left, in place of fresh memory."""
        if self._policy is None:
            slots = min(LARGEST_BATCH, len(rows))
            rollout = run.rollout.model_copy(update={"slots": slots, "dtype": "float32"})
            self._policy = self._trained.playing(rollout)
        else:
            self._policy.load(self._trained.weights(self._policy.version + 1))
        policy = self._policy

        def player(part: Sequence[Task]) -> list[Episode]:
            return play(policy, part)

        tasks = evaluation_tasks(rows, run.seed, erase=False)
        if carried:
            tasks = carried_tasks(player, tasks)
        played = played_figures(player, tasks, self._values)
        log.info("%s", transcripts(played.begun, self._values))
        return played.figures
