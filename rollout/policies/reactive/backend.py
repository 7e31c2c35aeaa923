"""Backends of the reactive engine: how a device computes what slots ask for.

`torch` is the model as it stands in `common/models`, on any device; `cuda_graphs` is the same,
recorded and replayed on a GPU; `cpu_kernels` is compiled code for float32 on CPUs. The setting
`rollout.backend` chooses; nothing else does, least of all the number of threads.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Hashable, Sequence
from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor

from common.config.names import BackendName
from common.failures import InputError
from common.models.reactive.model import ReactiveTransformer
from rollout.policies.reactive.cache import Reach
from rollout.policies.reactive.cuda_graphs import CudaGraphs
from rollout.policies.reactive.torch_backend import TorchBackend

log = logging.getLogger(__name__)

_CPU = "rollout.policies.reactive.cpu"


class Backend(Protocol):
    """Caches of all rows, and what is computed with them. What a row gets depends on that row
    alone."""

    name: str
    rows: int
    """Rows that there is room for: the slots, rounded up to what the device computes at once."""

    def refresh(self) -> None:
        """Take up the model's weights, which were changed in place."""

    def reach(self, active: int, longest: int) -> Reach:
        """Shapes of a step of the first `active` rows, the longest of which is `longest` tokens
        long after it."""

    def run(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The result of `compute`, which may be recorded at the first call of a key and replayed
        later. key: all that shapes depend on. The next call of the same key may overwrite it."""

    def read_memory(self, rows: Sequence[int], memories: Tensor) -> None:
        """Keep the keys and values of memories [rows, layers, slots, width]."""

    def fill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Keep the keys and values of prompts (ids), each of which may be empty, from position 0
        on."""

    def logits(self, tokens: Tensor, positions: Tensor, reach: Reach) -> Tensor:
        """One new token in each of the first rows → logits [reach.rows, vocabulary]. tokens,
        positions: int64 [reach.rows]."""

    def write(self, memories: Tensor, interactions: Sequence[Sequence[int]]) -> Tensor:
        """Memories [batch, layers, slots, width] after each was written with one interaction
        (ids)."""

    def move(self, source: int, target: int, positions: int) -> None:
        """Row `target` gets what row `source` keeps: `positions` tokens, and memory."""

    def clear(self, row: int) -> None:
        """Overwrite what a row keeps with zeros."""


def available(device: torch.device, dtype: torch.dtype) -> list[BackendName]:
    """Backends that can compute in `dtype` on a device, the one that `auto` takes first."""
    names: list[BackendName] = ["torch"]
    if device.type == "cuda":
        names.insert(0, "cuda_graphs")
    elif device.type == "cpu" and dtype == torch.float32 and _is_installed():
        names.insert(0, "cpu_kernels")
    return names


def _is_installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in (_CPU, "numba"))


def make_backend(
    wanted: BackendName, model: ReactiveTransformer, slots: int, device: torch.device
) -> Backend:
    """Raises InputError where the wanted backend cannot run here."""
    names = available(device, model.dtype)
    name = names[0] if wanted == "auto" else wanted
    if name not in names:
        kind = str(model.dtype).removeprefix("torch.")
        raise InputError(
            "rollout.backend",
            f"{name} cannot compute in {kind} on {device.type} here; {', '.join(names)} can",
        )
    log.info("rollout backend %s%s", name, " (chosen by auto)" if wanted == "auto" else "")
    if name == "cpu_kernels":
        made: Backend = import_module(f"{_CPU}.backend").CpuKernels(model, slots)
        return made
    if name == "cuda_graphs":
        return CudaGraphs(model, slots, device)
    return TorchBackend(model, slots, device)
