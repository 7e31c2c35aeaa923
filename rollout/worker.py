"""A rollout worker: a policy of one weights version, which plays the tasks it is dealt.

A plain class, made a Ray actor elsewhere. It keeps the names of RLlib's `EnvRunner` (sample,
get_state, set_state, ping, get_metrics, assert_healthy), so that who knows RLlib knows it.

Invariant: no episode is played with weights that were not verified, nor with a version other than
the one asked for.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

import torch

from common.actors.actor import PooledActor
from common.config.environment import CONVERSATION, EnvironmentSettings
from common.config.rollout import Rollout
from common.episode import Episode, Task
from common.failures import InfraFailure
from common.telemetry.host import record_memory
from common.telemetry.metrics import Metrics
from common.text.printable import print_anything
from common.weights import PackedWeights
from rollout.policies.play import play
from rollout.policies.table import PolicyShape, make_policy

SECONDS = "seconds/"
WAITING = f"{SECONDS}wait"
NOT_PLAYING = (WAITING, f"{SECONDS}load_weights")


class RolloutWorker(PooledActor):
    """index: which worker of the run; it names the worker in episodes and has no part in what they
    say.

    Until weights were set, the version is -1 and nothing can be sampled.
    """

    def __init__(
        self,
        shape: PolicyShape,
        rollout: Rollout,
        run_name: str,
        index: int,
        environment: EnvironmentSettings = CONVERSATION,
    ):
        torch.set_num_threads(rollout.threads)
        for stream in (sys.stdout, sys.stderr):
            print_anything(stream)  # what an environment prints must not fail its episode
        self.name = f"{run_name}/rollout-{index}"
        self._role = f"rollout-worker-{index}"
        self._digest: int | None = None
        device = "cuda" if rollout.gpus_per_worker > 0 else "cpu"
        self._policy = make_policy(shape, rollout, environment, device)
        self._idle_since = time.perf_counter()
        self._calls = 0
        self._reported: dict[str, float] = {}

    def __repr__(self) -> str:
        """Its role in the run, under which Ray shows it and its log is kept."""
        return self._role

    @property
    def version(self) -> int:
        """Version of the weights held."""
        return self._policy.version

    # --- playing ----------------------------------------------------------------------------------

    def sample(
        self, tasks: list[Task], version: int, weights: PackedWeights | None = None
    ) -> list[Episode]:
        """One episode per task, in order, played with the weights of `version`.

        weights: taken where the worker holds another version. An episode that fails, because its
        data does not fit the model or its environment raises or hangs, has status "failed" and a
        turn whose `failure` says why; the others are played.
        Raises InfraFailure where the worker lacks the version: it may have been restarted, another
        may have it.
        """
        timer = self._policy.timer
        timer.seconds["wait"] += time.perf_counter() - self._idle_since
        try:
            if weights is not None and (weights.version, weights.digest) != (
                self.version,
                self._digest,
            ):
                self.set_weights(weights)
            if self.version != version:
                raise InfraFailure(f"{self.name} has weights version {self.version}, not {version}")
            self._calls += 1
            return [replace(episode, worker=self.name) for episode in play(self._policy, tasks)]
        finally:
            self._idle_since = time.perf_counter()

    # --- state ------------------------------------------------------------------------------------

    def set_weights(self, weights: PackedWeights) -> int:
        """Verify and load; the version now held. Raises WeightsCorrupt or WeightsMismatch and keeps
        what it had."""
        with self._policy.timer("load_weights"):
            self._policy.load(weights)
        self._digest = weights.digest
        return self.version

    def get_state(self) -> dict[str, Any]:
        """Version and digest of the weights held. A worker has no other state: episodes end within
        a call."""
        return {"name": self.name, "version": self.version, "digest": self._digest}

    def set_state(self, state: dict[str, Any]) -> None:
        """state: {"weights": PackedWeights}."""
        self.set_weights(state["weights"])

    def assert_healthy(self) -> None:
        """Raises InfraFailure where weights hold a value that is not finite."""
        name = self._policy.not_finite()
        if name is not None:
            raise InfraFailure(
                f"{self.name}: {name} of weights version {self.version} is not finite"
            )

    # --- what it is doing -------------------------------------------------------------------------

    def phase(self) -> str:
        """The worker's current phase, for a watchdog (a call beside a running `sample` needs an
        actor with two threads)."""
        return self._policy.timer.current

    def get_metrics(self) -> dict[str, float]:
        """Totals since the worker started. tokens_per_second: per second inside `sample`, loading
        of weights left out;
        slot_occupancy: rows computed over slots there were, summed over decoding steps."""
        totals = self._totals()
        busy = _busy(totals)
        return totals | {
            "calls": float(self._calls),
            "weights_version": float(self.version),
            "tokens_per_second": totals["tokens"] / busy if busy else 0.0,
            "slot_occupancy": totals["row_steps"] / totals["slot_steps"]
            if totals["slot_steps"]
            else 0.0,
        }

    def metrics(self) -> dict[str, Any]:
        """Metrics since the last call, for `Metrics.merge`."""
        totals = self._totals()
        grown = {name: value - self._reported.get(name, 0.0) for name, value in totals.items()}
        self._reported = totals
        metrics, busy = Metrics(), _busy(grown)
        for name, value in grown.items():
            if name.startswith(SECONDS):
                metrics.record(
                    "time/phase_seconds", value, phase=name.removeprefix(SECONDS), role="rollout"
                )
        seconds = busy + sum(grown.get(phase, 0.0) for phase in NOT_PLAYING)
        if seconds > 0:
            idle = grown.get(WAITING, 0.0) / seconds
            metrics.record("time/idle_fraction", idle, seconds, role="rollout")
        if busy > 0:
            metrics.record("rollout/tokens_per_second", grown["tokens"] / busy)
        record_memory(metrics, "rollout")
        if grown.get("answer_seconds", 0.0) > 0:
            answers = grown["interactions"]
            seconds = grown["answer_seconds"] / answers
            metrics.record("rollout/turn_seconds", seconds, weight=answers)
        if grown["slot_steps"]:
            metrics.record(
                "rollout/slot_occupancy",
                grown["row_steps"] / grown["slot_steps"],
                weight=grown["slot_steps"],
            )
        return metrics.drain()

    def _totals(self) -> dict[str, float]:
        seconds = {
            f"{SECONDS}{phase}": value for phase, value in self._policy.timer.seconds.items()
        }
        return self._policy.counts() | seconds


def _busy(figures: dict[str, float]) -> float:
    """Seconds of playing."""
    return sum(
        value
        for name, value in figures.items()
        if name.startswith(SECONDS) and name not in NOT_PLAYING
    )
