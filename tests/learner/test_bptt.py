"""How far gradients flow: for every answer through its own last writes, as a plain loop over
answers computes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.config.stages import MemoryAware
from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.failures import InputError
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.unroll import TurnTokens, collate, memories, memories_and_before
from common.seeding import derive
from learner.parallel.group import OneRank
from learner.parallel.optimizer import combine
from learner.policies.reactive import conversation, starting_memory
from learner.stages.memory_aware import MemoryAwareObjective
from tests.local_source import lively_model, played, tiny_corpus, tiny_tasks
from tests.updates import make_update, mrl

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


def writes(
    model: ReactiveTransformer, turns: list[TurnTokens], initial: Tensor, answer: int, depth: Depth
) -> tuple[Tensor, Tensor]:
    """Memory [1, …] before and after the last write before `answer`, turn by turn; cut `depth`
    writes before it."""
    memory = old = initial[None]
    for index in range(answer):
        if depth != "all" and index == answer - depth:
            memory = memory.detach()
        tokens = torch.tensor([turns[index].remembered])
        mask = torch.ones_like(tokens, dtype=torch.bool)
        old, memory = memory, model.remember(memory, model.encode(tokens, mask), mask)
    return old, memory


def answer_log_probs(model: ReactiveTransformer, turn: TurnTokens, memory: Tensor) -> Tensor:
    tokens = torch.tensor([[*turn.query, *turn.answer]])
    return (
        model.decode(tokens, memory)[0, len(turn.query) - 1 : -1]
        .log_softmax(-1)
        .gather(1, torch.tensor(turn.answer)[:, None])[:, 0]
    )


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
        old, new = writes(model, conversations[i], model.first_memory, answer, depth)
        plain = plain + (new[0] * after_weight[row]).sum()
        if answer:
            plain = plain + (old[0] * before_weight[row - first]).sum()
    assert_same_gradients(model, loss, plain)


@pytest.mark.parametrize("depth", [1, 2, 3, "all"])
def test_memory_aware_loss_has_the_gradients_of_a_plain_loop(
    depth: Depth, tokenizer: ConversationTokenizer, conversations: list[list[TurnTokens]]
) -> None:
    model = lively_model(tokenizer).double()
    settings = MemoryAware(stage="memory_aware", bptt_turns=depth)
    loss, _ = combine(
        MemoryAwareObjective(settings, model, conversations, 3).terms([1, 3], 4, OneRank()),
        OneRank(),
    )
    plain, tokens = loss.new_zeros(()), 0
    for i in (1, 3):
        [initial] = model.initial_memory([derive(3, "memory_aware", 4, i)])
        for answer, turn in enumerate(conversations[i]):
            plain = (
                plain
                - answer_log_probs(
                    model, turn, writes(model, conversations[i], initial, answer, depth)[1]
                ).sum()
            )
            tokens += len(turn.answer)
    assert_same_gradients(model, loss, plain / tokens)


@pytest.mark.parametrize("depth", [1, 2, "all"])
def test_policy_loss_and_memory_penalty_have_the_gradients_of_a_plain_loop(
    depth: Depth, tokenizer: ConversationTokenizer
) -> None:
    sampler = lively_model(tokenizer)
    episodes = played(sampler, tokenizer, tiny_tasks(5))
    assert max(len(episode.turns) for episode in episodes) > 3
    settings = mrl(ppo={"bptt_turns": depth, "memory_change": 0.3, "kl": 0.0, "clip": 50.0})
    experience = make_update(sampler, settings).evaluate(episodes, list(range(5)))
    model = lively_model(tokenizer).double()
    loss, _ = combine(make_update(model, settings).policy_terms(experience), OneRank())

    surrogate, penalty, tokens, turns = loss.new_zeros(()), loss.new_zeros(()), 0, 0
    for i, episode in enumerate(episodes):
        told, initial = conversation(episode), starting_memory(model, [episode])[0]
        for answer in range(1, len(told)):
            old, new = writes(model, told, initial, answer, depth)
            sampled = torch.tensor(episode.turns[answer].log_probs)
            ratio = (answer_log_probs(model, told[answer], new) - sampled).exp()
            surrogate = surrogate - (experience.advantages[i, answer - 1] * ratio).sum()
            penalty = penalty + F.mse_loss(new, old) * answer**0.5
            tokens, turns = tokens + len(told[answer].answer), turns + 1
    assert_same_gradients(model, loss, surrogate / tokens + 0.3 * penalty / turns)


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
