"""Weights on their way into a running vLLM engine.

On a CPU vLLM repacks matrices and drops what it packed, so new weights must go through its own
`reload_weights`. On a GPU they go through its interface for weight transfer, in four phases, by a
transfer engine of ours: the sender is in the same process, so tensors are handed over as they are.

The GPU's way was written to vLLM's documentation and never run on one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from common.failures import DeadlineExceeded

TRANSFER = "engram"
"""Name of our transfer engine in vLLM's registry."""


class Update(Protocol):
    """One way of giving a running engine other weights."""

    def __call__(self, engine: Any, tensors: Mapping[str, Tensor]) -> None:
        """engine: vLLM's `LLM`, with nothing in flight. tensors: by their names in a
        checkpoint."""


def reload(engine: Any, tensors: Mapping[str, Tensor]) -> None:
    """The CPU's way."""
    engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(tensors.items())})


def transfer(engine: Any, tensors: Mapping[str, Tensor]) -> None:
    """The GPU's way: start, update, finish; `register_transfer` and the first phase, init, come
    before the first call."""
    engine.collective_rpc("start_weight_update")
    engine.collective_rpc("update_weights", args=({"tensors": dict(tensors)},))
    engine.collective_rpc("finish_weight_update")


def register_transfer() -> None:
    """Make our transfer engine known to vLLM under `TRANSFER`, in this process."""
    from vllm.distributed.weight_transfer import base, factory
    from vllm.model_executor.model_loader import reload as layerwise

    @dataclass
    class InitInfo(base.WeightTransferInitInfo):
        """Sender and receiver are one process: there is nothing to agree on."""

    @dataclass
    class UpdateInfo(base.WeightTransferUpdateInfo):
        tensors: dict[str, Tensor]

    class InProcess(base.WeightTransferEngine):
        init_info_cls, update_info_cls = InitInfo, UpdateInfo

        def init_transfer_engine(self, init_info: InitInfo) -> None:
            pass

        def start_weight_update(self) -> None:
            layerwise.initialize_layerwise_reload(self.model)

        def receive_weights(self, update_info: UpdateInfo) -> None:
            self.model.load_weights(
                (name, tensor.to(self.device)) for name, tensor in update_info.tensors.items()
            )

        def finish_weight_update(self) -> None:
            layerwise.finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None:
            pass

    if TRANSFER not in factory.WeightTransferEngineFactory._registry:
        factory.WeightTransferEngineFactory.register_engine(TRANSFER, InProcess)


def within(seconds: float, reason: str, work: Callable[[], None], device: torch.device) -> None:
    """Do `work` and raise what it raises; DeadlineExceeded where it takes longer. What is late goes
    on in its thread: the caller must not use what it works on any more."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            work()
        except BaseException as failure:  # noqa: BLE001 (raised again by the caller)
            raised.append(failure)

    thread = threading.Thread(target=run, name=reason, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise DeadlineExceeded(reason, seconds)
    if raised:
        raise raised[0]
