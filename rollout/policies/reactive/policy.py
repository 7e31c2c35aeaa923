"""The Reactive Transformer as a policy: a model, and the engine that plays with it."""

from __future__ import annotations

from typing import Any

import torch

from common.config.environment import EnvironmentSettings
from common.config.rollout import Rollout
from common.data.tokenizer import ConversationTokenizer
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from rollout.policies.playing import PlayingModule
from rollout.policies.reactive.engine import ReactiveEngine
from rollout.policies.reactive.session import Session


class ReactiveRolloutPolicy(PlayingModule):
    _model: ReactiveTransformer

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

    def session(self, seed: int) -> Session:
        sampling, backend = self._rollout.sampling, self._rollout.backend
        return Session(self._model, self._tokenizer, seed, sampling, backend=backend)
