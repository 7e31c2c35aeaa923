"""vLLM in this process: token ids in, token ids and their log-probs out, step by step.

Draws are vLLM's own. Each request has a seed, so the same engine, release and device give the same
answers, and another backend does not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch

from common.config.rollout import Rollout
from common.failures import DeadlineExceeded, InputError
from common.models.causal import model_from
from common.models.vllm_release import beside_numba, require_vllm
from common.weights import PackedWeights, WeightsMismatch, unpack
from rollout.policies.causal.vllm_weights import (
    TRANSFER,
    Update,
    register_transfer,
    reload,
    transfer,
    within,
)

BACKEND = "vllm"
"""Name of what computes here, as episodes hold it."""
_BLOCK = 128
"""Tokens of a block of vLLM's cache on CPUs."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token that a request got."""

    request: str
    id: int
    log_prob: float


class VllmGenerator:
    """model: configuration of the model, as `transformers` has it. max_tokens: longest sequence.

    It has no weights until `load`. Raises InputError where vLLM is not installed, or does not
    compute such a model here.
    """

    def __init__(
        self, model: dict[str, Any], max_tokens: int, eos_id: int, rollout: Rollout, device: str
    ):
        require_vllm("rollout.backend")
        self._device, self._deadline = torch.device(device), rollout.deadline
        self._sampling, self._eos_id = rollout.sampling, eos_id
        with torch.device("meta"):
            empty = model_from(model)
        self._shapes = {name: tuple(each.shape) for name, each in empty.state_dict().items()}
        self._broken: str | None = None
        self._update: Update = transfer if self._device.type == "cuda" else reload
        self._engine = self._start(empty, max_tokens, rollout)
        self._came = time.monotonic()
        self._asked: set[str] = set()
        """Requests in flight."""

    def _start(self, empty: Any, max_tokens: int, rollout: Rollout) -> Any:
        on_gpu = self._device.type == "cuda"
        settings: dict[str, Any] = (
            {
                "gpu_memory_utilization": 0.9 * rollout.gpus_per_worker,
                "weight_transfer_config": {"backend": TRANSFER},
            }
            if on_gpu
            else {
                "kv_cache_memory_bytes": _cache_bytes(empty.config, max_tokens, rollout),
                "enforce_eager": True,
            }
        )
        if on_gpu:
            register_transfer()
        described = json.loads(empty.config.to_json_string(use_diff=False))
        described |= {"architectures": [type(empty).__name__]}
        with TemporaryDirectory(prefix="engram-vllm-") as folder:
            with open(f"{folder}/config.json", "w", encoding="utf-8") as file:
                json.dump(described, file)
            try:
                with beside_numba():
                    from vllm import LLM, SamplingParams

                    engine = LLM(
                        folder,
                        skip_tokenizer_init=True,
                        load_format="dummy",
                        dtype=rollout.dtype,
                        max_model_len=max_tokens,
                        max_num_seqs=rollout.slots,
                        logprobs_mode="processed_logprobs",
                        **settings,
                    )
                # An operation that is missing shows at the first token only.
                engine.generate(
                    {"prompt_token_ids": [self._eos_id]},
                    SamplingParams(max_tokens=1, detokenize=False),
                    use_tqdm=False,
                )
            except (ValueError, NotImplementedError, RuntimeError) as refused:
                raise InputError(
                    "rollout.backend",
                    f"vllm does not compute this model here: {' '.join(str(refused).split())[:300]}"
                    "; transformers does",
                ) from refused
        if on_gpu:
            engine.collective_rpc("init_weight_transfer_engine", args=({},))
        return engine

    # --- weights ----------------------------------------------------------------------------------

    def load(self, weights: PackedWeights) -> None:
        """Take other weights, while nothing is in flight. Raises WeightsCorrupt or WeightsMismatch
        and keeps what it had; DeadlineExceeded where vLLM does not take them in time, after which
        nothing can be generated until others are loaded."""
        # Every name of the state dict, a tied head's too: vLLM keeps a packed copy of the head, and
        # would go on with the old one.
        shapes = {name: tuple(array.shape) for name, array in weights.tensors.items()}
        if shapes != self._shapes:
            wrong = sorted({name for name, _ in shapes.items() ^ self._shapes.items()})
            raise WeightsMismatch(
                f"weights version {weights.version}: {wrong[:3]} are missing, unexpected or of "
                "another shape"
            )
        tensors = unpack(weights)
        within(
            self._deadline,
            f"vLLM to take weights version {weights.version}",
            lambda: self._update(self._engine, tensors),
            self._device,
        )
        # Keys and values of the old weights must not answer for the new ones.
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache over an update of weights")
        self._broken = next(
            (name for name, each in tensors.items() if not torch.isfinite(each).all()), None
        )

    def not_finite(self) -> str | None:
        return self._broken

    # --- requests ---------------------------------------------------------------------------------

    def ask(self, request: str, context: Sequence[int], room: int, seed: int, greedy: bool) -> None:
        """Queue a request. room: the most tokens it may get. seed: int64, of its draws."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if not self._asked:
            self._came = time.monotonic()
        parameters = SamplingParams(
            temperature=0.0 if greedy else self._sampling.temperature,
            max_tokens=room,
            stop_token_ids=[self._eos_id],
            ignore_eos=True,
            seed=None if greedy else seed,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        prompt = {"prompt_token_ids": list(context)}
        self._engine.llm_engine.add_request(request, prompt, parameters)
        self._asked.add(request)

    def step(self) -> list[Token]:
        """One step of all requests. Raises DeadlineExceeded where no token came for a group's
        deadline: vLLM has no room for any of them."""
        tokens = []
        for output in self._engine.llm_engine.step():
            (completion,) = output.outputs
            for token, each in zip(completion.token_ids, completion.logprobs or (), strict=True):
                tokens.append(Token(output.request_id, token, each[token].logprob))
            if output.finished:
                self._asked.discard(output.request_id)
        if tokens:
            self._came = time.monotonic()
        elif time.monotonic() - self._came > self._deadline:
            raise DeadlineExceeded(
                f"vLLM to generate for {len(self._asked)} requests", self._deadline
            )
        return tokens

    def drop(self, request: str) -> None:
        """Take a request back. One that is over is passed over."""
        if request in self._asked:
            self._asked.remove(request)
            self._engine.llm_engine.abort_request([request])


def _cache_bytes(config: Any, max_tokens: int, rollout: Rollout) -> int:
    """Memory in which every slot has room for the longest sequence."""
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    size = getattr(torch, rollout.dtype).itemsize
    blocks = rollout.slots * -(-max_tokens // _BLOCK) + 1
    return int(2 * config.num_hidden_layers * shared * width * size * blocks * _BLOCK)
