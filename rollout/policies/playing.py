"""The parts of a policy that do not depend on its model: what its engine does, and weights of a
module in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Protocol

import torch
from torch import nn

from common.episode import Episode, Task
from common.telemetry.timing import PhaseTimer
from common.weights import PackedWeights, load_into
from rollout.policies.episode_state import EngineCounts


class Engine(Protocol):
    """Plays many episodes at once."""

    timer: PhaseTimer
    tally: EngineCounts

    @property
    def in_flight(self) -> int: ...

    def add(self, tasks: Sequence[Task], *, version: int = 0) -> None: ...

    def advance(self) -> list[Episode]: ...

    def cancel(self, task: str, reason: str) -> bool: ...


class Playing:
    """A policy as far as its engine plays it."""

    version: int
    _engine: Engine

    @property
    def timer(self) -> PhaseTimer:
        return self._engine.timer

    @property
    def in_flight(self) -> int:
        return self._engine.in_flight

    def add(self, tasks: Sequence[Task]) -> None:
        self._engine.add(tasks, version=self.version)

    def advance(self) -> list[Episode]:
        return self._engine.advance()

    def cancel(self, task: str, reason: str) -> bool:
        return self._engine.cancel(task, reason)

    def counts(self) -> dict[str, float]:
        return {name: float(value) for name, value in asdict(self._engine.tally).items()}


class PlayingModule(Playing):
    """A policy whose weights are those of a module in this process."""

    _model: nn.Module

    def load(self, weights: PackedWeights) -> None:
        load_into(self._model, weights)
        self.version = weights.version

    def not_finite(self) -> str | None:
        for name, parameter in self._model.named_parameters():
            if not torch.isfinite(parameter).all():
                return name
        return None
