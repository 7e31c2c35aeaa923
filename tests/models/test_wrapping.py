"""The model under what wraps modules: torch.compile, FSDP2, peft."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from common.config.causal import Lora
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from learner.lora import add_lora, plain_state


def make_model(**shape: Any) -> ReactiveTransformer:
    torch.manual_seed(0)
    return ReactiveTransformer(
        RxTConfig(
            **{"vocab_size": 90, "width": 32, "heads": 4, "query_heads": 4, "kv_heads": 2}
            | {"decoder_ff": 48, "encoder_ff": 48, "slots": 6, "max_tokens": 40} | shape
        )
    )  # fmt: skip


def inputs(model: ReactiveTransformer) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their mask, and memories."""
    tokens = torch.arange(8, 8 + 20).view(2, 10)
    return tokens, torch.ones_like(tokens, dtype=torch.bool), model.initial_memory([1, 2])


def one_turn(model: ReactiveTransformer) -> Tensor:
    """Logits of an answer after one interaction was written."""
    tokens, mask, memory = inputs(model)
    return model.decode(tokens, model.remember(memory, model.encode(tokens, mask), mask))


@pytest.mark.parametrize("reads", [1, 2])
@pytest.mark.parametrize("gradients", [True, False])
def test_decoding_compiles_to_one_graph(gradients: bool, reads: int) -> None:
    model = make_model(memory_reads=reads)
    tokens, _, memory = inputs(model)
    torch.compiler.reset()
    compiled = torch.compile(model.decode, backend="eager", fullgraph=True)
    with torch.set_grad_enabled(gradients):
        for width in (10, 7):  # also where the shape changes
            some = tokens[:, :width]
            torch.testing.assert_close(compiled(some, memory), model.decode(some, memory))


@pytest.mark.parametrize("gate", ["linear", "delta"])
@pytest.mark.parametrize("kind", ["simple", "self", "interlayer", "gated_self_interlayer"])
def test_writing_memory_compiles_to_one_graph(kind: str, gate: str) -> None:
    model = make_model(memory_attention=kind, residual_gate=gate)
    tokens, mask, memory = inputs(model)
    encoded = model.encode(tokens, mask)
    torch.compiler.reset()
    compiled = torch.compile(model.remember, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(memory, encoded, mask), model.remember(memory, encoded, mask)
    )


@pytest.fixture
def _process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("more", [{}, {"memory_reads": 2, "residual_gate": "delta"}], ids=str)
def test_encode_remember_and_decode_work_on_shards_and_give_the_same_gradients(
    more: dict[str, Any],
) -> None:
    whole = make_model(initial_memory="learned", **more)
    sharded: Any = copy.deepcopy(whole)
    for layer in sharded.decoder.layers:
        fully_shard(layer)
        register_fsdp_forward_method(layer, "read_memory")
    for layer in (*sharded.encoder.layers, *sharded.memory_attention.layers):
        fully_shard(layer)
    for layer in sharded.memory_attention.layers:
        register_fsdp_forward_method(layer, "prepare")
    fully_shard(sharded)
    for name in ("initial_memory", "encode", "remember", "prepare", "write", "decode"):
        register_fsdp_forward_method(sharded, name)
    found, expected = one_turn(sharded), one_turn(whole)
    torch.testing.assert_close(found, expected)
    for logits in (found, expected):
        logits.square().mean().backward()
    for (name, part), parameter in zip(sharded.named_parameters(), whole.parameters(), strict=True):
        assert parameter.grad is not None, name
        assert part.grad is not None, name
        torch.testing.assert_close(part.grad.full_tensor(), parameter.grad)


def test_adapters_on_every_projection_are_used_and_merge() -> None:
    model = make_model()
    plain = one_turn(model)
    add_lora(model, Lora(rank=2))
    adapters = {name: each for name, each in model.named_parameters() if ".lora_" in name}
    for projection in ("attention.input", "cross_attention.query", "cross_attention.key_value"):
        assert any(f".{projection}.lora_A" in name for name in adapters), projection
    torch.testing.assert_close(one_turn(model), plain)
    with torch.no_grad():
        for each in adapters.values():
            each.normal_(std=0.1)
    changed = one_turn(model)
    changed.sum().backward()
    unused = [name for name, each in adapters.items() if each.grad is None or not each.grad.any()]
    assert not unused
    merged = make_model()
    state = plain_state(model)
    assert state is not None
    merged.load_state_dict(state)
    torch.testing.assert_close(one_turn(merged), changed)
