"""The plan of a run of a causal language model: its size, and what ranks and workers need of
memory. Counts are exact but for activations, which are rough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.actors.resources import claims
from common.config.causal import CausalModel
from common.config.run import Run
from deploy.layout import table
from learner.stages.planning import FLOAT_BYTES, OPTIMIZER_FLOATS


@dataclass(frozen=True)
class CausalShape:
    """Sizes of a causal language model."""

    total: int
    """Parameters, tied ones once."""
    trained: int
    """Those that learn: of the adapters, or all."""
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
        trained=total if settings.lora is None else _adapter_parameters(model, settings),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        inner=int(inner or 4 * config.hidden_size),
        key_width=shared * head_width,
        vocabulary=config.vocab_size,
        max_tokens=longest,
    )


def _adapter_parameters(model: Any, settings: CausalModel) -> int:
    from learner.lora import adaptable_layers

    assert settings.lora is not None
    chosen = set(adaptable_layers(model, settings.lora))
    layers = [layer for name, layer in model.named_modules() if name in chosen]
    return sum(settings.lora.rank * sum(layer.weight.shape) for layer in layers)


def learner_bytes(run: Run, shape: CausalShape) -> dict[str, int]:
    """Memory of one learner rank by purpose, at its busiest stage."""
    settings = run.model.causal
    assert settings is not None, "of a causal policy"
    parts = {
        "weights": shape.total * FLOAT_BYTES,
        "gradients": shape.trained * FLOAT_BYTES,
        "optimiser": shape.trained * OPTIMIZER_FLOATS * FLOAT_BYTES,
        "activations, about": _activations(shape),
    }
    if run.needs_rollout and settings.lora is None:
        parts["reference policy"] = shape.total * FLOAT_BYTES
    if run.needs_rollout:
        width = shape.width
        head = width + 1 if settings.value_head.layers == 1 else 2 * width * (width + 2) + 1
        own = shape.total if settings.value_head.body == "own" else 0
        parts["value head, where there is a critic"] = (
            (head + own) * (2 + OPTIMIZER_FLOATS) * FLOAT_BYTES
        )
    return parts


def _activations(shape: CausalShape) -> int:
    """Bytes of one forward pass: per token and layer 16 widths and 3 inner widths, and three copies
    of the logits. A batch of more tokens is computed pass by pass."""
    from learner.policies.causal import PASS_TOKENS

    per_token = shape.layers * (16 * shape.width + 3 * shape.inner) + 3 * shape.vocabulary
    return PASS_TOKENS * per_token * FLOAT_BYTES


def rollout_bytes(run: Run, shape: CausalShape) -> dict[str, int]:
    """Memory of one rollout worker by purpose, with every slot at the longest sequence."""
    size = FLOAT_BYTES if run.rollout.dtype == "float32" else 2
    keys = run.rollout.slots * shape.layers * 2 * shape.key_width * shape.max_tokens
    logits = run.rollout.slots * shape.vocabulary * 3 * FLOAT_BYTES
    return {
        "weights": shape.total * size,
        "KV cache at most": keys * size,
        "logits": logits,
    }


def model_table(run: Run, shape: CausalShape) -> str:
    settings = run.model.causal
    assert settings is not None, "of a causal policy"
    adapters = "" if settings.lora is None else f" (adapters of rank {settings.lora.rank})"
    rows = [
        ["parameters", f"{shape.total:,}"],
        ["trained", f"{shape.trained:,}{adapters}"],
        ["layers × width", f"{shape.layers} × {shape.width}"],
        ["vocabulary", f"{shape.vocabulary:,}"],
        ["longest sequence", f"{shape.max_tokens:,} tokens"],
        ["remembers", _remembers(settings)],
    ]
    return table(f"The model, {settings.path}", ["what", "value"], rows)


def _remembers(settings: CausalModel) -> str:
    if settings.text_memory is not None:
        return f"a text that it writes, of {settings.text_memory.tokens} tokens at most"
    return f"the last {settings.interactions} interactions"


def roles(run: Run) -> str:
    """Actors in words."""
    counted = [(claim.count, claim.role) for claim in claims(run)]
    return ", ".join(f"{count} {role}{'s' if count > 1 else ''}" for count, role in counted)
