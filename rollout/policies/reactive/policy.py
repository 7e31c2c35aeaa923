"""The Reactive Transformer as a policy: a model, and the engine that plays with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from common.config.environment import EnvironmentSettings
from common.config.rollout import Rollout
from common.data.tokenizer import ConversationTokenizer
from common.episode import Episode, Task
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.telemetry.timing import PhaseTimer
from common.weights import PackedWeights, load_into
from rollout.policies.reactive.engine import ReactiveEngine
from rollout.policies.reactive.session import Session


class ReactiveRolloutPolicy:
    def __init__(
        self,
        model_config: dict[str, Any],
        tokenizer: str,
        rollout: Rollout,
        environment: EnvironmentSettings,
        device: torch.device,
    ):
        self.version = -1
        self._model = ReactiveTransformer(RxTConfig(**model_config)).eval().requires_grad_(False)
        self._model.to(device, getattr(torch, rollout.dtype))
        self._tokenizer, self._rollout = ConversationTokenizer.from_json(tokenizer), rollout
        self._engine = ReactiveEngine(
            self._model,
            self._tokenizer,
            rollout.slots,
            rollout.sampling,
            device,
            environment,
            rollout.backend,
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

    def session(self, seed: int) -> Session:
        sampling, backend = self._rollout.sampling, self._rollout.backend
        return Session(self._model, self._tokenizer, seed, sampling, backend=backend)
