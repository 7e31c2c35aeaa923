"""A causal language model as a policy: a model, and the engine that plays with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from common.config.environment import EnvironmentSettings
from common.config.rollout import Rollout
from common.data.causal_tokenizer import CausalTokenizer
from common.episode import Episode, Task
from common.failures import InputError
from common.models.causal import model_from
from common.telemetry.timing import PhaseTimer
from common.weights import PackedWeights, load_into
from rollout.policies.causal.engine import BACKEND, CausalEngine
from rollout.policies.causal.session import CausalSession


class CausalRolloutPolicy:
    """Raises InputError where `rollout.backend` names one that computes Reactive Transformers."""

    def __init__(
        self,
        model_config: dict[str, Any],
        tokenizer: str,
        rollout: Rollout,
        environment: EnvironmentSettings,
        device: torch.device,
    ):
        if rollout.backend not in ("auto", BACKEND):
            raise InputError(
                "rollout.backend",
                f"{rollout.backend} computes Reactive Transformers; a causal language model takes "
                f"auto or {BACKEND}",
            )
        self.version = -1
        self._model = model_from(model_config).requires_grad_(False)
        self._model.to(device, getattr(torch, rollout.dtype))
        self._tokenizer, self._rollout = CausalTokenizer.from_json(tokenizer), rollout
        self._device = device
        self._engine = CausalEngine(
            self._model,
            self._tokenizer,
            rollout.slots,
            rollout.sampling,
            device,
            environment,
        )

    @property
    def timer(self) -> PhaseTimer:
        return self._engine.timer

    @property
    def in_flight(self) -> int:
        return self._engine.in_flight

    def load(self, weights: PackedWeights) -> None:
        load_into(self._model, weights)
        self.version = weights.version

    def not_finite(self) -> str | None:
        for name, parameter in self._model.named_parameters():
            if not torch.isfinite(parameter).all():
                return name
        return None

    def add(self, tasks: Sequence[Task]) -> None:
        self._engine.add(tasks, version=self.version)

    def advance(self) -> list[Episode]:
        return self._engine.advance()

    def cancel(self, task: str, reason: str) -> bool:
        return self._engine.cancel(task, reason)

    def counts(self) -> dict[str, float]:
        return {name: float(value) for name, value in asdict(self._engine.tally).items()}

    def session(self, seed: int) -> CausalSession:
        sampling = self._rollout.sampling
        return CausalSession(self._model, self._tokenizer, self._device, seed, sampling)
