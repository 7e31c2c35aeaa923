"""A decoder layer that reads memory twice follows a chain of two facts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from common.models.reactive.config import RxTConfig
from common.models.reactive.decoder import Decoder, DecoderLayer, Sequences

THINGS = 8
"""Entities, each a one-hot code: a token or the key of a fact in the first half of a vector, what
is found or the value of a fact in the second."""
BALL, MARY, KITCHEN, SANDRA, GARDEN = range(5)


def code(key: int | None, value: int | None = None) -> Tensor:
    vector = torch.zeros(2 * THINGS)
    if key is not None:
        vector[key] = 1.0
    if value is not None:
        vector[THINGS + value] = 1.0
    return vector


def half(start: int, scale: float = 1.0) -> Tensor:
    """A map of the half of a vector from `start` on to its first half."""
    weight = torch.zeros(2 * THINGS, 2 * THINGS)
    weight[:THINGS, start : start + THINGS] = scale * torch.eye(THINGS)
    return weight


@torch.no_grad()
def chained(reads: int) -> Decoder:
    """One layer made by hand: the first read asks for what the token is, a second one for what has
    been found."""
    shape: dict[str, Any] = {"width": 2 * THINGS, "layers": 1, "slots": 3, "max_tokens": 8}
    decoder = Decoder(RxTConfig(heads=1, query_heads=1, kv_heads=1, memory_reads=reads, **shape))
    layer = decoder.layers[0]
    assert isinstance(layer, DecoderLayer)
    for silent in (layer.attention.output, layer.feed_forward.down):
        for parameter in silent.parameters():
            parameter.zero_()
    cross, found = layer.cross_attention, half(0).T.roll(THINGS, 0)
    cross.query.weight.copy_(half(0, 20.0))
    cross.key_value.weight.copy_(torch.cat([half(0), half(THINGS)]))
    outputs = [cross.output]
    if reads == 2:
        layer.second_attention.query.weight.copy_(half(THINGS, 20.0))
        outputs.append(layer.second_attention.output)
    for output in outputs:
        output.weight.copy_(found)
        output.bias.zero_()
    return decoder


@pytest.mark.parametrize(("ball", "mary"), [(MARY, KITCHEN), (SANDRA, GARDEN)])
def test_the_second_read_asks_for_what_the_first_found(ball: int, mary: int) -> None:
    facts = [
        code(BALL, ball),
        code(ball, mary),
        code(SANDRA + MARY - ball, KITCHEN + GARDEN - mary),
    ]
    memory, token = torch.stack(facts)[None, None], code(BALL)[None, None]
    found = {}
    for reads in (1, 2):
        decoder = chained(reads)
        context = Sequences(decoder.rope(token.device)[:1], *decoder.read_memory(memory))
        with torch.no_grad():
            found[reads] = decoder(token, context)[0, 0, THINGS:]
    assert set(found[1].topk(1).indices.tolist()) == {ball}
    assert set(found[2].topk(2).indices.tolist()) == {ball, mary}
    assert found[1][mary] < 0.1 < 1.0 < found[2][mary]


def test_gradients_reach_both_reads_and_memory_through_the_second_alone() -> None:
    torch.manual_seed(0)
    decoder = Decoder(RxTConfig(width=32, layers=1, slots=5, memory_reads=2))
    layer = decoder.layers[0]
    assert isinstance(layer, DecoderLayer)
    torch.nn.init.zeros_(layer.cross_attention.output.weight)
    memory, x = torch.randn(1, 1, 5, 32, requires_grad=True), torch.randn(1, 4, 32)
    context = Sequences(decoder.rope(x.device)[:4], *decoder.read_memory(memory))
    decoder(x, context).square().sum().backward()
    assert memory.grad is not None
    assert memory.grad.abs().max() > 1e-4
    for part in (layer.second_attention, layer.second_norm, layer.cross_attention.output):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 1e-6, name
