"""How memory's size changes from write to write."""

from __future__ import annotations

import torch

from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.unroll import TurnTokens, collate, growth, memories


def test_growth_is_in_doublings_and_leaves_the_first_write_out() -> None:
    one = torch.full((2, 3, 4), 5.0)  # layers, slots, width
    # Two conversations, of four turns and of three: memory before each turn.
    before = [[1, 1], [10, 20], [40, 20], [20]]
    memory = torch.cat([torch.stack([size * one for size in sizes]) for sizes in before])
    found = growth(memory, [2, 2, 2, 1])
    torch.testing.assert_close(found, torch.tensor([2.0, 0.0, -1.0]))
    assert len(growth(memory[:2], [2])) == 0


def test_tanh_gates_add_and_sigmoid_gates_mix() -> None:
    """Under tanh, old and new weigh two together, whatever a gate does: memory whose contents agree
    doubles at each write."""
    found = {}
    for activation in ("tanh", "sigmoid"):
        torch.manual_seed(0)
        shape = {"memory_attention": "self", "initializer_range": 0.1, "max_tokens": 16}
        model = ReactiveTransformer(
            RxTConfig(width=32, heads=4, gate_activation=activation, **shape)
        )
        turns = [TurnTokens([2, 5, 9, 6], [10, 3], [2, 5, 9 + k, 6, 10, 3]) for k in range(12)]
        batch = collate([turns])
        memory = memories(model, batch, model.initial_memory([1]), "all")
        found[activation] = float(growth(memory, batch.active).mean())
    assert found["tanh"] > 0.5
    assert abs(found["sigmoid"]) < 0.2
