"""How far gradients flow: for every answer through its own last writes, as a plain loop over
answers computes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor

from common.config.stages import MemoryAware
from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.failures import InputError
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.unroll import TurnTokens, collate, memories, memories_and_before
from tests.local_source import lively_model, tiny_corpus
from tests.plain_memory import memory_around_write

Depth = int | Literal["all"]
DEPTHS: list[Depth] = [1, 2, 3, 4, 5, 9, "all"]


@pytest.fixture(scope="module")
def tokenizer() -> ConversationTokenizer:
    return train_tokenizer(tiny_corpus().texts, 400)


@pytest.fixture
def model(tokenizer: ConversationTokenizer) -> ReactiveTransformer:
    """In float64, with a first memory that is trained, too."""
    return lively_model(tokenizer, initial_memory="learned").double()


@pytest.fixture(scope="module")
def conversations() -> list[list[TurnTokens]]:
    """Of 1, 6, 3 and 5 turns, each turn of another length."""
    draw = torch.Generator().manual_seed(1)

    def ids(least: int) -> list[int]:
        return torch.randint(
            8, 60, (least + int(torch.randint(0, 5, (1,), generator=draw)),), generator=draw
        ).tolist()

    def turn() -> TurnTokens:
        query, answer = ids(2), ids(1)
        return TurnTokens(query, answer, [*query, *answer])

    return [[turn() for _ in range(count)] for count in (1, 6, 3, 5)]


def gradients(model: ReactiveTransformer, loss: Tensor) -> Iterator[tuple[str, Tensor]]:
    model.zero_grad()
    loss.backward()
    for name, parameter in model.named_parameters():
        yield (
            name,
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone(),
        )


def assert_same_gradients(model: ReactiveTransformer, loss: Tensor, plain: Tensor) -> None:
    torch.testing.assert_close(loss, plain, rtol=1e-9, atol=1e-9)
    expected = dict(gradients(model, plain))
    assert any(gradient.any() for name, gradient in expected.items() if "memory_attention" in name)
    for name, gradient in gradients(model, loss):
        torch.testing.assert_close(
            gradient,
            expected[name],
            rtol=1e-9,
            atol=1e-9,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("depth", DEPTHS)
def test_memory_of_every_answer_has_the_gradient_of_its_own_window(
    depth: Depth, model: ReactiveTransformer, conversations: list[list[TurnTokens]]
) -> None:
    batch = collate(conversations)
    initial = model.initial_memory([0] * len(conversations))
    memory, before = memories_and_before(model, batch, initial, depth)
    direction = torch.Generator().manual_seed(2)
    after_weight, before_weight = (
        torch.randn(x.shape, generator=direction, dtype=x.dtype) for x in (memory, before)
    )
    loss = (memory * after_weight).sum() + (before * before_weight).sum()

    plain = loss.new_zeros(())
    first = batch.active[0]
    for row, (i, answer) in enumerate(
        zip(batch.conversations.tolist(), batch.turns.tolist(), strict=True)
    ):
        earlier = [turn.remembered for turn in conversations[i][:answer]]
        old, new = memory_around_write(model, model.initial_memory([0]), earlier, depth)
        plain = plain + (new[0] * after_weight[row]).sum()
        if answer:
            plain = plain + (old[0] * before_weight[row - first]).sum()
    assert_same_gradients(model, loss, plain)


def test_every_window_holds_the_memory_of_the_whole_conversation(
    tokenizer: ConversationTokenizer, conversations: list[list[TurnTokens]]
) -> None:
    model, batch = lively_model(tokenizer), collate(conversations)
    initial = model.initial_memory([1, 2, 3, 4])
    whole = memories(model, batch, initial, "all")
    for depth in (1, 2, 4):
        torch.testing.assert_close(
            memories(model, batch, initial, depth), whole, rtol=1e-5, atol=1e-5
        )
        with torch.no_grad():
            torch.testing.assert_close(
                memories(model, batch, initial, depth), whole, rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_window_of_no_writes_is_refused(wrong: int) -> None:
    with pytest.raises((InputError, ValueError), match="bptt_turns"):
        MemoryAware(stage="memory_aware", bptt_turns=wrong)
