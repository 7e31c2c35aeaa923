"""A causal language model as a policy: a model, and the engine that plays with it."""

from __future__ import annotations

import logging
from typing import Any

import torch

from common.config.environment import EnvironmentSettings
from common.config.names import CAUSAL_BACKENDS
from common.config.rollout import Rollout
from common.data.causal_tokenizer import CausalTokenizer
from common.failures import InputError
from common.models.causal import model_from
from common.models.vllm_release import has_vllm
from common.weights import PackedWeights, WeightsCorrupt, WeightsMismatch
from rollout.policies.causal.engine import CausalEngine
from rollout.policies.causal.session import CausalSession
from rollout.policies.causal.vllm_engine import VllmEngine
from rollout.policies.causal.vllm_generator import VllmGenerator
from rollout.policies.playing import Playing, PlayingModule
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


class CausalRolloutPolicy(PlayingModule):
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

    def session(self, seed: int) -> CausalSession:
        sampling = self._rollout.sampling
        return CausalSession(self._model, self._tokenizer, self._device, seed, sampling)


class VllmRolloutPolicy(Playing):
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
        longest = tokenizer.memory.max_tokens
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
