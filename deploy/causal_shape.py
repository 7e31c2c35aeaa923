"""Sizes of a causal language model, from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.config.causal import CausalModel


@dataclass(frozen=True)
class CausalShape:
    """Sizes of a causal language model."""

    total: int
    """Parameters, tied ones once."""
    trained: int
    """Those that learn: of the adapters, of the last layers, or all."""
    layers: int
    width: int
    inner: int
    """Inner width of a feed-forward layer."""
    key_width: int
    """Numbers that a key of a token has, over all key heads."""
    vocabulary: int
    max_tokens: int
    """Longest sequence."""

    def parameters(self) -> dict[str, int]:
        return {"total": self.total, "embedding": self.vocabulary * self.width}


def causal_shape(settings: CausalModel) -> CausalShape:
    """Raises InputError where there is no such model, or where weights in its folder do not fit."""
    # Here and not at the top: they take seconds to import.
    import torch
    from transformers import AutoModelForCausalLM

    from common.models.causal import (
        config_of,
        require_causal_weights,
        require_room,
        sequence_limit,
    )

    config = config_of(settings.path)
    longest = sequence_limit(settings.path, config, settings.max_tokens)
    require_room(settings, longest)
    require_causal_weights(settings.path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    total = sum(parameter.numel() for parameter in model.parameters())
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return CausalShape(
        total=total,
        trained=_trained_parameters(model, settings),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        inner=int(inner or 4 * config.hidden_size),
        key_width=shared * head_width,
        vocabulary=config.vocab_size,
        max_tokens=longest,
    )


def _trained_parameters(model: Any, settings: CausalModel) -> int:
    from learner.lora import adaptable_layers
    from learner.policies.trunk import trained_names

    if settings.lora is None:
        names = trained_names(model, settings)
        own = model.named_parameters()
        return sum(p.numel() for name, p in own if names is None or name in names)
    chosen = set(adaptable_layers(model, settings.lora))
    layers = [layer for name, layer in model.named_modules() if name in chosen]
    return sum(settings.lora.rank * sum(layer.weight.shape) for layer in layers)
