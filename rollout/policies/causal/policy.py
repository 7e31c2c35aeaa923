"""A causal language model as a policy: a model, and the engine that plays with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from common.config.environment import EnvironmentSettings
from common.config.names import CAUSAL_BACKENDS
from common.config.rollout import Rollout
from common.data.causal_tokenizer import CausalTokenizer
from common.episode import Episode, Task
from common.failures import InputError
from common.models.causal import model_from
from common.models.vllm_release import has_vllm
from common.telemetry.timing import PhaseTimer
from common.weights import PackedWeights, WeightsCorrupt, WeightsMismatch, load_into
from rollout.policies.causal.conversations import Conversations
from rollout.policies.causal.engine import CausalEngine
from rollout.policies.causal.session import CausalSession
from rollout.policies.causal.vllm_engine import VllmEngine
from rollout.policies.causal.vllm_generator import VllmGenerator
from rollout.protocols import Policy

log = logging.getLogger(__name__)


def backend_for(rollout: Rollout, device: torch.device) -> str:
    """The backend that plays on a device. Raises InputError where `rollout.backend` names one that
    computes Reactive Transformers."""
    name: str = rollout.backend
    if name == "auto":
        fits = rollout.gpus_per_worker <= 1 and not rollout.sampling.filtered
        name = "vllm" if device.type == "cuda" and fits and has_vllm() else "transformers"
    if name not in CAUSAL_BACKENDS:
        raise InputError(
            "rollout.backend",
            f"{name} computes Reactive Transformers; a causal language model takes auto, "
            f"{' or '.join(CAUSAL_BACKENDS)}",
        )
    return name


def causal_policy(
    model_config: dict[str, Any],
    tokenizer: str,
    rollout: Rollout,
    environment: EnvironmentSettings,
    device: torch.device,
) -> Policy:
    """Raises InputError as `backend_for`, and where vLLM is to generate and cannot here."""
    name = backend_for(rollout, device)
    chosen = " (chosen by auto)" if rollout.backend == "auto" else ""
    log.info("rollout backend %s%s", name, chosen)
    make = VllmRolloutPolicy if name == "vllm" else CausalRolloutPolicy
    return make(model_config, CausalTokenizer.from_json(tokenizer), rollout, environment, device)


class _Playing:
    """The part of a policy that its engine does."""

    version: int
    _engine: Conversations

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


class CausalRolloutPolicy(_Playing):
    """A model of `transformers` in this process."""

    def __init__(
        self,
        model_config: dict[str, Any],
        tokenizer: CausalTokenizer,
        rollout: Rollout,
        environment: EnvironmentSettings,
        device: torch.device,
    ):
        self.version = -1
        self._model = model_from(model_config).requires_grad_(False)
        self._model.to(device, getattr(torch, rollout.dtype))
        self._tokenizer, self._rollout, self._device = tokenizer, rollout, device
        self._engine = CausalEngine(
            self._model, tokenizer, rollout.slots, rollout.sampling, device, environment
        )

    def load(self, weights: PackedWeights) -> None:
        load_into(self._model, weights)
        self.version = weights.version

    def not_finite(self) -> str | None:
        for name, parameter in self._model.named_parameters():
            if not torch.isfinite(parameter).all():
                return name
        return None

    def session(self, seed: int) -> CausalSession:
        sampling = self._rollout.sampling
        return CausalSession(self._model, self._tokenizer, self._device, seed, sampling)


class VllmRolloutPolicy(_Playing):
    """vLLM in this process."""

    def __init__(
        self,
        model_config: dict[str, Any],
        tokenizer: CausalTokenizer,
        rollout: Rollout,
        environment: EnvironmentSettings,
        device: torch.device,
    ):
        self.version = -1
        longest = tokenizer.window.max_tokens
        self._generator = VllmGenerator(
            model_config, longest, tokenizer.eos_id, rollout, str(device)
        )
        self._engine = VllmEngine(
            self._generator, tokenizer, rollout.slots, rollout.sampling, environment
        )

    def load(self, weights: PackedWeights) -> None:
        """Raises DeadlineExceeded too, where vLLM does not take them in time. Then no version is
        held."""
        held, self.version = self.version, -1
        try:
            self._generator.load(weights)
        except (WeightsCorrupt, WeightsMismatch):
            self.version = held
            raise
        self.version = weights.version

    def not_finite(self) -> str | None:
        return self._generator.not_finite()

    def session(self, seed: int) -> CausalSession:
        raise InputError("rollout.backend", "vllm plays episodes; a session takes transformers")
