"""Memory written by kernels against the modules that define it, in double precision."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from rollout.policies.reactive.cpu.memory import CompiledMemory

LENGTHS = (1, 5, 33, 64)
GATES = list(
    itertools.product(
        ("none", "static", "elementwise", "linear", "per_number"),
        ("sigmoid", "tanh"),
        (True, False),
    )
)
GATES.append(("delta", "sigmoid", True))


def make(seed: int = 0, **shape: Any) -> tuple[ReactiveTransformer, CompiledMemory]:
    torch.manual_seed(seed)
    model = ReactiveTransformer(
        RxTConfig(
            vocab_size=100,
            width=48,
            layers=2,
            slots=10,
            max_tokens=64,
            **{"gate_initial": 0.3} | shape,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.requires_grad_(False)
    return model, CompiledMemory(model, model.decoder.rope(torch.device("cpu")))


def interactions_and_memories(model: ReactiveTransformer) -> tuple[list[list[int]], Tensor]:
    draw = np.random.default_rng(0)
    config = model.config
    return [draw.integers(8, 100, length).tolist() for length in LENGTHS], torch.randn(
        len(LENGTHS), config.layers, config.slots, config.width
    )


def written_plainly(
    model: ReactiveTransformer, memories: Tensor, interactions: list[list[int]]
) -> Tensor:
    """One at a time."""
    after = []
    for memory, interaction in zip(memories, interactions, strict=True):
        tokens, mask = (
            torch.tensor([interaction]),
            torch.ones(1, len(interaction), dtype=torch.bool),
        )
        after.append(model.remember(memory[None].double(), model.encode(tokens, mask), mask))
    return torch.cat(after)


@pytest.mark.parametrize("kind", ["simple", "self", "interlayer", "gated_self_interlayer"])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (3, 1)], ids=str)
def test_every_variant_writes_what_its_modules_do(kind: str, heads: tuple[int, int]) -> None:
    query, kv = heads
    # Heads of memory attention are numbers of their own.
    own = {"query_heads": 8, "kv_heads": 4, "memory_query_heads": query, "memory_kv_heads": kv}
    for gate, activation, per_slot in GATES:
        model, compiled = make(
            memory_attention=kind,
            residual_gate=gate,
            gate_activation=activation,
            gate_per_slot=per_slot,
            **own,
        )
        interactions, memories = interactions_and_memories(model)
        written = compiled.write(memories, interactions)
        exact = written_plainly(model.double(), memories, interactions)
        torch.testing.assert_close(
            written.double(),
            exact,
            atol=3e-5,
            rtol=1e-5,
            msg=lambda text, gate=gate: f"{gate}: {text}",
        )


@pytest.mark.parametrize("gate", ["static", "linear", "per_number", "delta"])
def test_a_stretched_gate_can_be_shut_and_wide_open(gate: str) -> None:
    for initial in (0.3, -4.0, 4.0):
        model, compiled = make(
            memory_attention="self", residual_gate=gate, gate_stretch=0.4, gate_initial=initial
        )
        interactions, memories = interactions_and_memories(model)
        written = compiled.write(memories, interactions)
        exact = written_plainly(model.double(), memories, interactions)
        torch.testing.assert_close(written.double(), exact, atol=3e-5, rtol=1e-5)
        if initial == -4.0 and gate == "static":
            assert torch.equal(written, memories), "every gate is shut"


def test_a_large_epsilon() -> None:
    """Where a norm does not hide the size of what it is given, a mean over layers has to be one."""
    model, compiled = make(norm_eps=1.0)
    interactions, memories = interactions_and_memories(model)
    written = compiled.write(memories, interactions)
    torch.testing.assert_close(
        written.double(),
        written_plainly(model.double(), memories, interactions),
        atol=3e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("gate", ["none", "elementwise", "linear", "per_number", "delta"])
@pytest.mark.parametrize("kind", ["simple", "gated_self_interlayer"])
def test_a_memory_is_written_alike_in_any_company_bit_for_bit(kind: str, gate: str) -> None:
    model, compiled = make(memory_attention=kind, residual_gate=gate, query_heads=8, kv_heads=2)
    interactions, memories = interactions_and_memories(model)
    written = compiled.write(memories, interactions)
    for some in ([0], [3], [2, 1], [3, 0, 2]):
        assert torch.equal(
            compiled.write(memories[some], [interactions[i] for i in some]), written[some]
        )
    assert torch.equal(
        compiled.write(memories.transpose(1, 2).contiguous().transpose(1, 2), interactions), written
    )


def test_what_is_not_finite_shows_in_its_memory_and_in_no_other() -> None:
    model, compiled = make()
    interactions, memories = interactions_and_memories(model)
    written = compiled.write(memories, interactions)
    memories[2, 1, 7, 3] = torch.nan
    broken = compiled.write(memories, interactions)
    assert broken[2].isnan().any()
    assert torch.equal(broken[[0, 1, 3]], written[[0, 1, 3]])
    only = next(iter(set(interactions[1]).difference(interactions[0], interactions[3])))
    for bad in (torch.nan, torch.inf):
        model.embedding.weight[only, 5] = bad
        unreadable = compiled.write(memories, interactions)
        assert not unreadable[1].isfinite().all()
        assert torch.equal(unreadable[[0, 3]], written[[0, 3]])


def test_what_does_not_fit_is_refused_before_anything_reads_past_an_array() -> None:
    model, compiled = make()
    interactions, memories = interactions_and_memories(model)
    too_long = [9] * (model.config.positions + 1)
    for unfit in (
        interactions[:3],
        [*interactions, [9]],
        [*interactions[:3], []],
        [*interactions[:3], too_long],
    ):
        with pytest.raises(ValueError, match="4 memories cannot be written with interactions of"):
            compiled.write(memories, unfit)


def test_weights_changed_in_place_are_taken_up_by_refresh() -> None:
    model, compiled = make()
    interactions, memories = interactions_and_memories(model)
    before = compiled.write(memories, interactions)
    other, others = make(seed=1)
    model.load_state_dict(other.state_dict())
    compiled.refresh()
    after = compiled.write(memories, interactions)
    assert torch.equal(after, others.write(memories, interactions))
    assert not torch.allclose(after, before)
