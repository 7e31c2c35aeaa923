"""Low-rank adapters (Hu 2021) on a model, by peft, and the plain weights that they come to."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from common.config.stages import Lora
from common.failures import InputError, nearest

ADAPTER = "default"
HEADS = ("score", "classifier", "head")
"""Names of what maps hidden states to rewards: trained whole."""


def add_lora(module: nn.Module, settings: Lora) -> None:
    """Put adapters into `module`, in place. Raises InputError where peft is missing or no layer has
    one of the names."""
    targets = adaptable_layers(module, settings)
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
    )
    adapted: Any = module
    inject_adapter_in_model(config, adapted, ADAPTER)


def adaptable_layers(module: nn.Module, settings: Lora) -> list[str]:
    """Names of the layers that get an adapter. InputError where peft is missing, or no layer has
    one of the names in the settings."""
    if importlib.util.find_spec("peft") is None:
        raise InputError(
            "lora", "needs peft, which is not installed here: pip install 'engram-rl[peft]'"
        )
    adaptable = [
        name
        for name, layer in module.named_modules()
        if _is_linear(layer) and name.split(".")[0] not in (*HEADS, *FROZEN)
    ]
    known = sorted({name.rpartition(".")[2] for name in adaptable})
    for target in settings.targets:
        if target not in known:
            raise InputError(
                "lora.targets", f"no linear layer is named {target!r}; {nearest(target, known)}"
            )
    return [
        name
        for name in adaptable
        if not settings.targets or name.rpartition(".")[2] in settings.targets
    ]


FROZEN = ("embedding", "encoder", "memory_attention")
"""The writer half of a reward model with memory."""


def is_adapter_or_head(name: str) -> bool:
    """Whether a parameter of a module with adapters is trained. name: without the module's own
    prefix."""
    return ".lora_" in name or name.split(".")[0] in HEADS


def plain_state(module: nn.Module) -> dict[str, Tensor] | None:
    """The weights of a module with its adapters merged in, by the names they have without; None
    where there are no adapters."""
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError:
        return None
    layers: dict[str, Any] = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)
    }
    if not layers:
        return None
    state = {}
    for name, value in module.state_dict().items():
        if ".lora_" in name:
            continue
        owner, _, rest = name.partition(".base_layer.")
        if rest == "weight":
            with torch.no_grad():
                value = value + layers[owner].get_delta_weight(ADAPTER).to(value)
        state[f"{owner}.{rest}" if rest else name] = value
    return state


def _is_linear(layer: nn.Module) -> bool:
    """Also GPT-2's Conv1D, which is a linear layer with its weight transposed."""
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
