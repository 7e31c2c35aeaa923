"""Writes to memory by the delta rule: what a key retrieves is replaced, the rest stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.models.reactive.config import RxTConfig
from common.models.reactive.memory import ResidualGate
from common.models.reactive.model import ReactiveTransformer

HEADS, SIZE = 4, 8


def delta(strength: float, **shape: Any) -> ResidualGate:
    """strength: before the sigmoid."""
    torch.manual_seed(0)
    config = RxTConfig(width=HEADS * SIZE, heads=HEADS, slots=3, residual_gate="delta", **shape)
    gate = ResidualGate(config)
    with torch.no_grad():
        gate.linear.bias.zero_()
        gate.linear.weight[-1] = 0.0
        gate.linear.bias[-1] = strength
    return gate


def key_and_value(gate: ResidualGate, new: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [..., heads] and values [..., head_dim] that `new` [batch, slots, width] writes."""
    key, value, _ = (
        gate.linear(new.flatten(0, 1)).view(*new.shape[:2], -1).split((HEADS, SIZE, 1), -1)
    )
    return F.normalize(key, dim=-1), value / value.square().mean(-1, keepdim=True).sqrt()


def retrieved(memory: Tensor, key: Tensor) -> Tensor:
    return torch.einsum("bsh,bshd->bsd", key, memory.unflatten(-1, (HEADS, SIZE)))


@torch.no_grad()
@pytest.mark.parametrize("strength", [-1.0, 0.0, 8.0])
def test_a_key_retrieves_its_new_value_and_other_keys_what_they_did(strength: float) -> None:
    gate, old, new = delta(strength), 0.1 * torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    key, value = key_and_value(gate, new)
    other = torch.randn(2, 3, HEADS)
    other -= (other * key).sum(-1, keepdim=True) * key
    written, share = gate(old, new), torch.tensor(strength).sigmoid()
    torch.testing.assert_close(
        retrieved(written, key), (1 - share) * retrieved(old, key) + share * value,
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip
    torch.testing.assert_close(retrieved(written, other), retrieved(old, other))


@torch.no_grad()
def test_what_is_written_again_under_a_key_replaces_what_it_held() -> None:
    """And is not added to it."""
    gate, old, new = delta(20.0), 0.1 * torch.randn(1, 3, 32), torch.randn(1, 3, 32)
    once = gate(old, new)
    torch.testing.assert_close(gate(once, new), once, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_memory_is_bounded_however_often_it_is_written() -> None:
    gate, memory, largest = delta(20.0), torch.randn(16, 3, 32), 0.0
    for _ in range(200):
        memory = gate(memory, 5 * torch.randn(16, 3, 32))
        largest = max(largest, float(memory.square().mean(-1).sqrt().max()))
    assert 0.9 < largest < 1.0 + 1e-5


@torch.no_grad()
def test_a_stretched_strength_of_zero_leaves_memory_as_it_was() -> None:
    gate = delta(-9.0, gate_stretch=0.1)
    shares: list[Tensor] = []
    old = 0.1 * torch.randn(2, 3, 32)
    assert torch.equal(gate(old, torch.randn(2, 3, 32), shares), old)
    assert float(shares[0].abs().max()) == 0.0


@torch.no_grad()
def test_shares_are_those_of_the_rows_that_a_key_names() -> None:
    gate, new = delta(0.0), torch.randn(2, 3, 32)
    shares: list[Tensor] = []
    gate(torch.randn(2, 3, 32), new, shares)
    key, _ = key_and_value(gate, new)
    torch.testing.assert_close(shares[0], (0.5 * key.square()).repeat_interleave(SIZE, -1))
    assert float(shares[0].mean()) == pytest.approx(0.5 / HEADS)


def test_a_new_model_writes_with_the_strength_that_is_set() -> None:
    shape: dict[str, Any] = {"width": HEADS * SIZE, "heads": HEADS, "query_heads": 2, "kv_heads": 2}
    model = ReactiveTransformer(RxTConfig(residual_gate="delta", gate_initial=-2.0, **shape))
    gates = [module for module in model.modules() if isinstance(module, ResidualGate)]
    assert gates
    for gate in gates:
        *rest, strength = gate.linear.bias.tolist()
        assert (strength, set(rest)) == (-2.0, {0.0})
