"""Parts of a Reactive Transformer that are trained or frozen as a whole."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from torch import nn

from common.models.reactive.config import RxTConfig
from common.models.reactive.decoder import DecoderLayer
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.parts import PARTS, part_of

SIZES: dict[str, Any] = {"vocab_size": 30, "width": 16, "layers": 2, "heads": 4, "slots": 5}
SIZES |= {"query_heads": 2, "kv_heads": 2, "decoder_ff": 12, "encoder_ff": 8, "max_tokens": 16}
ATTENTION = ("simple", "self", "interlayer", "gated_self_interlayer")
GATES = ("none", "static", "elementwise", "linear", "per_number", "delta")
VARIANTS: list[dict[str, Any]] = [
    *({"memory_attention": kind, "residual_gate": gate} for kind in ATTENTION for gate in GATES),
    {"experts": 3, "experts_per_token": 2},
    {"initial_memory": "learned"},
    {"memory_attention": "last_interaction", "initial_memory": "learned"},
    {"memory_reads": 2},
    {"cross_query_heads": 4, "cross_kv_heads": 1, "memory_query_heads": 4},
]


def size(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize("shape", VARIANTS, ids=str)
def test_every_parameter_of_every_variant_belongs_to_one_part(shape: dict[str, Any]) -> None:
    """Counted by the modules themselves, and by the sizes that a plan shows."""
    config = RxTConfig(**SIZES | shape)
    model = ReactiveTransformer(config)
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        found[part_of(name)] += parameter.numel()
    layers = [layer for layer in model.decoder.layers if isinstance(layer, DecoderLayer)]
    cross = sum(
        size(layer.cross_attention, layer.cross_norm, layer.memory_norm)
        + (size(layer.second_attention, layer.second_norm) if layer.reads_again else 0)
        for layer in layers
    )
    counts = config.parameters()
    assert found == {
        "embedding": counts["embedding"],
        "encoder": counts["encoder"],
        "memory_attention": counts["memory"],
        "memory_cross_attention": cross,
        "decoder": counts["decoder"] + counts["head"] - cross,
    }
    assert set(found) == set(PARTS)
    assert found.total() == size(model)


@pytest.mark.parametrize("name", ["heads.0.weight", "decoders.0.weight", ""])
def test_a_parameter_of_no_part_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="belongs to none of memory_attention, "):
        part_of(name)
