"""Invariant 9: nothing a conversation is batched with can change its terms. And whether gradients
flow back through memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch

from common.config.mrl import MRL, CurriculumStep
from common.config.stages import SFT, JointLM, MemoryAware, MemoryPretrain
from common.data.tokenizer import ConversationTokenizer, train_tokenizer
from common.models.reactive.critic import Critic
from common.models.reactive.memory import as_memory
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.parts import part_of
from common.models.reactive.unroll import (
    ConversationBatch,
    TurnTokens,
    answer_logits,
    collate,
    memories,
)
from learner.parallel.group import OneRank
from learner.parallel.optimizer import LossTerm
from learner.stages.joint_lm import JointLMObjective
from learner.stages.memory_aware import MemoryAwareObjective
from learner.stages.memory_pretrain import MemoryPretrainObjective
from learner.stages.supervised import Objective, row_tokens
from tests.local_source import lively_model, played, tiny_corpus, tiny_tasks
from tests.updates import make_update, mrl

CURRICULUM = (CurriculumStep(name="all", iterations=1, max_steps=3),)
NOISE = {"blind_fraction": 0.5, "hide_probability": 0.2, "noise": 0.3}
MIXTURE = {"experts": 4, "experts_per_token": 2, "decoder_ff": 24}


@pytest.fixture(scope="module")
def tokenizer() -> ConversationTokenizer:
    return train_tokenizer(tiny_corpus().texts, 400)


@pytest.fixture(scope="module")
def conversations(tokenizer: ConversationTokenizer) -> list[list[TurnTokens]]:
    chosen = [row_tokens(row, tokenizer) for row in tiny_corpus().train[:6]]
    assert len({len(turns) for turns in chosen}) == 3
    return chosen


def objective(
    kind: str, model: ReactiveTransformer, conversations: list[list[TurnTokens]]
) -> Objective:
    sequences = [[*turn.query, *turn.answer] for turns in conversations for turn in turns[-1:]]
    prompts = [len(turns[-1].query) for turns in conversations]
    torch.manual_seed(0)
    match kind:
        case "joint_lm":
            return JointLMObjective(
                JointLM.model_validate({"stage": kind, **NOISE}),
                model,
                sequences,
                [0] * len(sequences),
                3,
            )
        case "sft":
            return JointLMObjective(
                SFT.model_validate({"stage": kind, **NOISE}), model, sequences, prompts, 3
            )
        case "memory_pretrain":
            return MemoryPretrainObjective(
                MemoryPretrain(stage="memory_pretrain", input_noise=0.3), model, conversations, 3
            )
    return MemoryAwareObjective(MemoryAware(stage="memory_aware"), model, conversations, 3)


def sums(terms: Sequence[LossTerm]) -> dict[str, torch.Tensor]:
    """(sum, count) by name."""
    return {
        term.name: torch.tensor([float(term.sum.detach()), float(term.count)]) for term in terms
    }


def assert_parts_make_the_whole(
    parts: list[dict[str, torch.Tensor]], whole: dict[str, torch.Tensor]
) -> None:
    for name, expected in whole.items():
        total = torch.stack([part[name] for part in parts]).sum(0)
        assert total.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("kind", ["joint_lm", "sft", "memory_pretrain", "memory_aware"])
def test_example_adds_to_a_batch_what_it_has_alone(
    kind: str, tokenizer: ConversationTokenizer, conversations: list[list[TurnTokens]]
) -> None:
    objective_ = objective(kind, lively_model(tokenizer), conversations)
    everything = range(len(conversations))
    whole = sums(objective_.terms(everything, 2, OneRank()))
    alone = [sums(objective_.terms([i], 2, OneRank())) for i in everything]
    assert all(count > 0 for name, (_, count) in whole.items() if name != "train/loss_masked_lm")
    assert_parts_make_the_whole(alone, whole)


@pytest.mark.parametrize("kind", ["sft", "memory_aware"])
def test_router_loss_counts_real_tokens_only(
    kind: str, tokenizer: ConversationTokenizer, conversations: list[list[TurnTokens]]
) -> None:
    """Two conversations of unlike length count together what each counts alone, and each token
    chooses two experts per layer."""
    model = lively_model(tokenizer, **MIXTURE)
    shortest, longest = (
        pick(range(len(conversations)), key=lambda i: len(conversations[i][-1].query))
        for pick in (min, max)
    )

    class Counting(OneRank):
        def __init__(self) -> None:
            super().__init__()
            self.counted: list[float] = []

        def sum(self, tensor: torch.Tensor) -> torch.Tensor:
            self.counted.append(float(tensor.sum()))
            return tensor

    counted = []
    for chosen in ([shortest], [longest], [shortest, longest]):
        group = Counting()
        objective(kind, model, conversations).terms(chosen, 2, group)
        choices, tokens = group.counted[:2]
        assert choices == tokens * model.config.layers * 2
        counted.append(tokens)
    assert counted[0] + counted[1] == counted[2]


@pytest.mark.parametrize("part", ["policy", "critic"])
def test_episode_adds_to_ppo_what_it_has_alone(
    part: Literal["policy", "critic"], tokenizer: ConversationTokenizer
) -> None:
    model = lively_model(tokenizer)
    episodes = played(model, tokenizer, tiny_tasks(8))
    settings = MRL.model_validate(
        {"stage": "mrl", "curriculum": CURRICULUM, "ppo": {"entropy": 0.1, "memory_change": 0.1}}
    )
    reference = lively_model(tokenizer, seed=1)
    critic = Critic.from_policy(model)
    torch.nn.init.normal_(critic.value.weight, std=0.3)
    update = make_update(model, settings, reference, critic)
    experience = update.evaluate(episodes, list(range(8)))
    assert update.critic is not None
    with torch.no_grad():  # or the ratio is 1, and the loss of a token is its advantage
        for parameter in (*model.parameters(), *update.critic.module.parameters()):
            parameter.add_(0.01 * torch.randn(parameter.shape))

    def terms(chosen: list[int]) -> dict[str, torch.Tensor]:
        chosen_part = experience.select(chosen)
        if part == "critic":
            return sums(update.critic_terms(chosen_part))
        return sums(update.policy_terms(chosen_part))

    whole = terms(list(range(8)))
    assert_parts_make_the_whole([terms([i]) for i in range(8)], whole)


def test_values_and_reference_log_probs_do_not_depend_on_the_batch(
    tokenizer: ConversationTokenizer,
) -> None:
    model = lively_model(tokenizer)
    episodes = played(model, tokenizer, tiny_tasks(6))
    critic = Critic.from_policy(model)
    torch.nn.init.normal_(critic.value.weight, std=0.3)
    update = make_update(model, mrl(), critic=critic)
    whole = update.evaluate(episodes, list(range(6)))
    for i, episode in enumerate(episodes):
        alone = update.evaluate([episode], [i])
        turns = len(episode.answered)
        torch.testing.assert_close(whole.values[i, :turns], alone.values[0])
        torch.testing.assert_close(whole.returns[i, :turns], alone.returns[0])
        torch.testing.assert_close(
            torch.cat(whole.reference[i]), torch.cat(alone.reference[0]), atol=1e-5, rtol=1e-5
        )


def test_encoding_as_memory_ignores_padding_and_is_itself_where_slots_are_tokens() -> None:
    encoded = torch.randn(2, 3, 5, 8)
    full, short = torch.ones(2, 5, dtype=torch.bool), torch.arange(5).expand(2, 5) < 3
    torch.testing.assert_close(as_memory(encoded, full, 5), encoded)
    torch.testing.assert_close(as_memory(encoded[:, :, :3], full[:, :3], 3), encoded[:, :, :3])
    for slots in (2, 3, 7):
        spoiled = encoded.clone()
        spoiled[:, :, 3:] = 1e6
        torch.testing.assert_close(
            as_memory(spoiled, short, slots), as_memory(encoded[:, :, :3], full[:, :3], slots)
        )
    two = as_memory(torch.arange(4.0).view(1, 1, 4, 1), torch.ones(1, 4, dtype=torch.bool), 2)
    assert two.flatten().tolist() == [0.5, 2.5]


# --- how far gradients flow -----------------------------------------------------------------------


def encoded_gradients(
    model: ReactiveTransformer, turns: list[TurnTokens], bptt_turns: int | Literal["all"]
) -> list[float]:
    """Norm of the gradient of the LAST answer's loss with respect to the encoding of each earlier
    turn."""
    batch = collate([turns])
    encoded: list[torch.Tensor] = []
    real = model.encode

    def watched(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        encoded.append(real(tokens, mask))
        encoded[-1].retain_grad()
        return encoded[-1]

    model.encode = watched  # type: ignore[method-assign]
    try:
        memory = memories(model, batch, model.initial_memory([4]), bptt_turns)
    finally:
        model.encode = real  # type: ignore[method-assign]
    last_only = batch.answer_mask() & (batch.turns == len(turns) - 1)[:, None]
    logits, targets = answer_logits(model, batch.tokens, memory, last_only)
    torch.nn.functional.cross_entropy(logits, targets).backward()
    gradient = encoded[0].grad
    assert gradient is not None
    return [float(gradient[k].norm()) for k in range(len(turns) - 1)]


@pytest.mark.parametrize(
    ("bptt_turns", "reached"),
    [(1, [False, False, True]), (2, [False, True, True]), ("all", [True, True, True])],
)
def test_gradients_flow_back_through_as_many_writes_as_asked(
    bptt_turns: Any,
    reached: list[bool],
    tokenizer: ConversationTokenizer,
    conversations: list[list[TurnTokens]],
) -> None:
    turns = max(conversations, key=len)
    assert len(turns) == 4
    model = lively_model(tokenizer)
    assert [norm > 0 for norm in encoded_gradients(model, turns, bptt_turns)] == reached
    if bptt_turns == 2:
        assert [norm > 0 for norm in encoded_gradients(model, turns[:3], 2)] == [True, True]


@pytest.mark.parametrize("frozen", [("encoder", "embedding"), ("encoder",)])
def test_what_leads_to_frozen_parts_alone_is_computed_without_gradient(
    frozen: tuple[str, ...],
    tokenizer: ConversationTokenizer,
    conversations: list[list[TurnTokens]],
) -> None:
    """An embedding that learns needs the gradient through an encoder that does not."""
    model = lively_model(tokenizer)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) not in frozen)
    batch: ConversationBatch = collate(conversations)
    encoded = model.encode(batch.written, batch.written_mask)
    assert encoded.requires_grad == ("embedding" not in frozen)
    memories(model, batch, model.initial_memory(list(range(6))), "all").square().sum().backward()
    reached = {part_of(n) for n, p in model.named_parameters() if p.grad is not None}
    assert reached == {"memory_attention", "embedding"} - set(frozen)
