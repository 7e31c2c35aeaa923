"""Low-rank adapters (Hu 2021) on a model, by peft, and the plain weights that they come to."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from common.config.causal import Lora
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
        if _is_linear(layer)
        and name.split(".")[0] not in (*HEADS, *FROZEN)
        and layer is not _vocabulary_head(module)
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


def _vocabulary_head(module: nn.Module) -> nn.Module | None:
    """The layer that gives logits of a language model: it often is the embedding, too."""
    head = getattr(module, "get_output_embeddings", None)
    found: nn.Module | None = None if head is None else head()
    return found


FROZEN = ("embedding", "encoder", "memory_attention")
"""The writer half of a reward model with memory."""


def is_adapter_or_head(name: str) -> bool:
    """Whether a parameter of a module with adapters is trained. name: without the module's own
    prefix."""
    return ".lora_" in name or name.split(".")[0] in HEADS


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return ".lora_" in name


def has_adapters(module: nn.Module) -> bool:
    """Whether `add_lora` put adapters into a module."""
    return any(is_adapter(name) for name, _ in module.named_parameters())


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """The model without its adapters, for as long as this lasts. No gradient reaches them then."""
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
    trained = [p for name, p in module.named_parameters() if is_adapter(name) and p.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        # enable_adapters decides what is trained, too; here that is not its business.
        for name, parameter in module.named_parameters():
            if is_adapter(name):
                parameter.requires_grad_(any(parameter is each for each in trained))


@torch.no_grad()
def take_plain(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a module plain weights (`plain_state`); adapters become 0."""
    if not has_adapters(module):
        module.load_state_dict(state)
        return
    own = module.state_dict()
    for name, value in own.items():
        if is_adapter(name):
            if ".lora_B." in name:
                value.zero_()
        else:
            value.copy_(state[name.replace(".base_layer.", ".")])


def plain_state(module: nn.Module) -> dict[str, Tensor] | None:
    """The weights of a module with its adapters merged in, by the names they have without; None
    where there are no adapters."""
    if not has_adapters(module):
        return None  # without importing peft, which takes five seconds
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)
    }
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
