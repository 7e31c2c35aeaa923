"""What each supervised stage teaches, and on what."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from common.config.stages import (
    SFT,
    JointLM,
    MemoryAware,
    MemoryPretrain,
    Optimizer,
)
from common.data.tokenizer import EOS, PAD, SPECIAL_TOKENS, ConversationTokenizer, train_tokenizer
from common.episode import Interaction, Row
from common.failures import InputError
from common.models.layers.feed_forward import Routing
from common.models.reactive.memory import as_memory
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.unroll import TurnTokens, collate
from common.text.values import contains_value
from learner.evaluation.evaluate import evaluation_tasks, recall_by_distance
from learner.parallel.group import OneRank
from learner.parallel.optimizer import Trainer, combine, learning_rate_factor
from learner.rl.load_balance import router_terms
from learner.setup import require_fit
from learner.stages.joint_lm import JointLMObjective, chunks
from learner.stages.memory_aware import MemoryAwareObjective, turns_at
from learner.stages.memory_pretrain import MemoryPretrainObjective, new_weight
from learner.stages.supervised import Objective, batch_indices, row_tokens
from tests.local_source import lively_model, played, tiny_corpus


@pytest.fixture(scope="module")
def tokenizer() -> ConversationTokenizer:
    return train_tokenizer(tiny_corpus().texts, 400)


def conversations(
    tokenizer: ConversationTokenizer, count: int = 8
) -> tuple[list[Row], list[list[TurnTokens]]]:
    rows = tiny_corpus().train[:count]
    return rows, [row_tokens(row, tokenizer) for row in rows]


def pairs(tokenizer: ConversationTokenizer) -> tuple[list[list[int]], list[int]]:
    turns = [turn for conversation in conversations(tokenizer)[1] for turn in conversation]
    return [[*turn.query, *turn.answer] for turn in turns], [len(turn.query) for turn in turns]


def learnable(tokenizer: ConversationTokenizer, **shape: Any) -> ReactiveTransformer:
    return lively_model(
        tokenizer, **{"initializer_range": 0.08, "initial_memory_std": 0.02} | shape
    )


def taught(
    objective: Objective, steps: int, batch: int, rate: float = 5e-3
) -> list[dict[str, float]]:
    """Mean of each term at every step."""
    group = OneRank()
    settings = Optimizer(learning_rate=rate, weight_decay=0.0, warmup_fraction=0.1)
    trainer = Trainer(objective.modules, settings, steps, group, objective.trainable)
    history = []
    for step in range(steps):
        loss, sums = combine(
            objective.terms(batch_indices(0, "test", objective.examples, batch, step), step, group),
            group,
        )
        trainer.update([loss], step)
        history.append({name: total / max(1.0, count) for name, (total, count) in sums.items()})
    return history


def mean(history: list[dict[str, float]], name: str, part: slice) -> float:
    values = [row[name] for row in history[part]]
    return sum(values) / len(values)


# --- joint LM and SFT -----------------------------------------------------------------------------


def test_both_losses_of_joint_lm_go_down(tokenizer: ConversationTokenizer) -> None:
    model, (sequences, _) = learnable(tokenizer), pairs(tokenizer)
    history = taught(
        JointLMObjective(JointLM(stage="joint_lm"), model, sequences, [0] * len(sequences), 1),
        60,
        12,
    )
    assert mean(history, "train/loss_lm", slice(-10, None)) < 0.4 * mean(
        history, "train/loss_lm", slice(5)
    )
    assert mean(history, "train/loss_masked_lm", slice(-10, None)) < 0.6 * mean(
        history, "train/loss_masked_lm", slice(5)
    )


def test_no_special_token_is_ever_masked(tokenizer: ConversationTokenizer) -> None:
    sequences = [
        tokenizer.interaction("my dog is Rex", "okay", think) for think in ("good name", None)
    ]
    sequences.append(list(range(len(SPECIAL_TOKENS)))[1:])
    settings = JointLM(stage="joint_lm", mask_probability=0.999999)
    objective = JointLMObjective(settings, lively_model(tokenizer), sequences, [0] * 3, 1)
    terms = {term.name: term for term in objective.terms(range(3), 0, OneRank())}
    words = sum(token >= len(SPECIAL_TOKENS) for sequence in sequences for token in sequence)
    assert terms["train/loss_masked_lm"].count == words


def test_sft_counts_answers_with_their_end_and_neither_prompt_nor_padding(
    tokenizer: ConversationTokenizer,
) -> None:
    model, (sequences, prompts) = lively_model(tokenizer), pairs(tokenizer)
    assert len({len(sequence) for sequence in sequences}) > 2
    assert all(sequence[-1] == EOS for sequence in sequences)
    objective = JointLMObjective(SFT(stage="sft"), model, sequences, prompts, 1)
    terms = {term.name: term for term in objective.terms(range(len(sequences)), 0, OneRank())}
    answers = sum(
        len(sequence) - prompt for sequence, prompt in zip(sequences, prompts, strict=True)
    )
    assert terms["train/loss_lm"].count == answers

    # By hand, sequence by sequence: the sum over answer tokens of -log p(token | what is before it,
    # the encoder's states).
    by_hand = 0.0
    quiet = JointLMObjective(SFT(stage="sft", mask_probability=1e-9), model, sequences, prompts, 1)
    total = {term.name: term for term in quiet.terms(range(len(sequences)), 0, OneRank())}[
        "train/loss_lm"
    ].sum
    for sequence, prompt in zip(sequences, prompts, strict=True):
        tokens = torch.tensor([sequence])
        mask = torch.ones_like(tokens, dtype=torch.bool)
        memory = as_memory(model.encode(tokens, mask), mask, model.config.slots)
        log_probs = model.decode(tokens, memory).detach().log_softmax(-1)[0]
        by_hand -= sum(
            float(log_probs[at - 1, sequence[at]]) for at in range(prompt, len(sequence))
        )
    assert float(total.detach()) == pytest.approx(by_hand, rel=1e-5)


def test_sft_teaches_to_stop(tokenizer: ConversationTokenizer) -> None:
    model, (sequences, prompts) = learnable(tokenizer), pairs(tokenizer)
    taught(
        JointLMObjective(SFT(stage="sft", blind_fraction=1.0), model, sequences, prompts, 1), 60, 12
    )
    rows, _ = conversations(tokenizer)
    episodes = played(model.eval(), tokenizer, evaluation_tasks(rows, 0, erase=True))
    ended = [turn.answer_ids[-1] == EOS for episode in episodes for turn in episode.answered]
    assert sum(ended) / len(ended) > 0.9


def test_long_texts_are_cut_and_lone_tokens_left_out() -> None:
    assert chunks(list(range(9)), 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert chunks(list(range(6)), 4) == [[0, 1, 2, 3], [4, 5]]


# --- memory ---------------------------------------------------------------------------------------


def test_new_information_weighs_most_in_the_first_write_and_less_with_each() -> None:
    settings = MemoryPretrain(stage="memory_pretrain")
    weights = [new_weight(settings, write) for write in range(14)]
    assert weights[:4] == pytest.approx([0.9, 0.5, 0.45, 0.4])
    assert weights[9:12] == pytest.approx([0.1, 0.05, 0.05])
    assert weights[-1] == settings.minimum_weight == 0.05


def test_memory_pretraining_brings_the_cosine_up_and_touches_nothing_else(
    tokenizer: ConversationTokenizer,
) -> None:
    model, (_, told) = learnable(tokenizer), conversations(tokenizer)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    history = taught(
        MemoryPretrainObjective(MemoryPretrain(stage="memory_pretrain"), model, told, 1), 40, 8
    )
    assert (
        mean(history, "train/memory_cosine", slice(-5, None))
        > mean(history, "train/memory_cosine", slice(3)) + 0.2
    )
    changed = {
        name.split(".")[0]
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert changed == {"memory_attention"}


def test_memory_aware_training_learns_to_recall_what_was_said_turns_ago(
    tokenizer: ConversationTokenizer,
) -> None:
    """Eight conversations by heart, generated and read back by the engine; with memory erased the
    answers are gone."""
    model, (rows, told) = learnable(tokenizer, memory_attention="self"), conversations(tokenizer)
    values = {fact.value for row in rows for turn in row.interactions for fact in turn.facts}
    assert len(values) > 3
    history = taught(
        MemoryAwareObjective(MemoryAware(stage="memory_aware"), model, told, 1), 250, 8
    )
    assert history[-1]["train/loss_lm"] < 0.1
    recall, _ = recall_by_distance(
        played(model.eval(), tokenizer, evaluation_tasks(rows, 0, erase=False))
    )
    erased, _ = recall_by_distance(played(model, tokenizer, evaluation_tasks(rows, 0, erase=True)))
    assert recall["all"] > 0.9
    assert erased["all"] < 0.7


def test_conversations_grow_from_the_first_follow_ups_to_their_whole_length() -> None:
    settings = MemoryAware(stage="memory_aware", steps=100, first_follow_ups=1, grow_fraction=0.4)
    turns = [turns_at(settings, 6, step) for step in range(100)]
    assert turns[0] == 2
    assert turns == sorted(turns)
    assert turns[39] < turns[40] == 6 or turns[39] == 6
    assert set(turns) == {2, 3, 4, 5, 6}
    assert {
        turns_at(MemoryAware(stage="memory_aware", steps=100), 6, step) for step in range(100)
    } == {6}


def test_answers_alone_are_targets_of_a_batch_of_conversations(
    tokenizer: ConversationTokenizer,
) -> None:
    _, told = conversations(tokenizer)
    batch = collate(told)
    mask = batch.answer_mask()
    targets = batch.tokens[:, 1:][mask]
    flat = [
        turn.answer
        for k in range(len(batch.active))
        for turn in (told[i][k] for i in batch.order[: batch.active[k]])
    ]
    assert targets.tolist() == [token for answer in flat for token in answer]
    assert PAD not in targets


# --- mixture of experts, data order, rates --------------------------------------------------------


def test_load_balancing_loss_tells_collapsed_from_balanced_routing() -> None:
    """Two experts, each token sure of its choice by 0.8: everything to one gives 2 · 0.8 = 1.6,
    half and half 1.0 (Switch, eq. 4)."""

    def loss(chosen: list[int]) -> float:
        picked = torch.tensor(chosen)[:, None]
        probabilities = torch.full((len(chosen), 2), 0.2).scatter(1, picked, 0.8)
        # Padding, which would tip the balance if it counted.
        probabilities, picked = (
            torch.cat([probabilities, torch.tensor([[1.0, 0.0]])]),
            torch.cat([picked, torch.zeros(1, 1, dtype=torch.int64)]),
        )
        mask = torch.tensor([[True] * len(chosen) + [False]])
        [term] = router_terms([Routing(probabilities, picked)], mask, 0.01, OneRank())
        assert (term.count, term.coefficient) == (1.0, 0.01)
        return float(term.sum)

    assert loss([0, 0, 0, 0]) == pytest.approx(1.6)
    assert loss([1, 1, 1, 1]) == pytest.approx(1.6)
    assert loss([0, 1, 0, 1]) == pytest.approx(1.0)
    assert router_terms([], torch.ones(1, 1, dtype=torch.bool), 0.01, OneRank()) == []


def test_every_epoch_is_a_permutation_of_its_own_and_position_is_the_step() -> None:
    steps = [batch_indices(7, "sft", 10, 4, step) for step in range(10)]
    assert all(len(indices) == 4 for indices in steps)
    flat = [index for indices in steps for index in indices]
    epochs = [flat[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert batch_indices(7, "sft", 10, 4, 5) == steps[5]
    assert (
        batch_indices(8, "sft", 10, 4, 5) != steps[5] != batch_indices(7, "memory_aware", 10, 4, 5)
    )
    assert sorted(batch_indices(7, "sft", 3, 7, 0)[:3]) == [0, 1, 2]


def test_interaction_that_is_too_long_is_named(tokenizer: ConversationTokenizer) -> None:
    corpus = tiny_corpus()
    require_fit(corpus, tokenizer, 32)
    chatty = Interaction("what is my dog called?", "your dog is called Rex and " * 8)
    rows = [
        *corpus.train[:2],
        replace(corpus.train[2], interactions=(*corpus.train[2].interactions[:1], chatty)),
    ]
    with pytest.raises(
        InputError, match=r"data\.train, row 3, interaction 2: .*model\.max_tokens is 32"
    ):
        require_fit(replace(corpus, train=rows), tokenizer, 32)
    with pytest.raises(InputError, match=r"data\.pairs, pair 1: "):
        require_fit(replace(corpus, pairs=[chatty]), tokenizer, 32)


def test_learning_rate_rises_to_its_peak_and_falls_along_half_a_cosine() -> None:
    settings = Optimizer(warmup_fraction=0.1, final_fraction=0.2)
    factors = [learning_rate_factor(settings, step, 100) for step in range(100)]
    assert factors[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.2 + 0.8 * 0.5)
    assert factors[99] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * 89 / 90)))
    assert learning_rate_factor(settings, 100, 100) == pytest.approx(0.2)
    constant = Optimizer(warmup_fraction=0.0, final_fraction=1.0)
    assert {learning_rate_factor(constant, step, 7) for step in range(7)} == {1.0}


def test_rates_of_memory_are_their_own_and_vectors_are_not_decayed(
    tokenizer: ConversationTokenizer,
) -> None:
    model = lively_model(tokenizer)
    trainer = Trainer(
        {"model": model},
        Optimizer(learning_rate=0.1, memory_learning_rate=0.02, weight_decay=0.3),
        10,
        OneRank(),
    )
    names = {id(parameter): name for name, parameter in trainer.named.items()}
    for group in trainer.adamw.param_groups:
        for parameter in group["params"]:
            assert group["peak"] == (0.02 if ".memory_attention." in names[id(parameter)] else 0.1)
            assert group["weight_decay"] == (0.3 if parameter.dim() > 1 else 0.0)


def test_value_counts_as_recalled_in_whole_words_only() -> None:
    assert contains_value("it is Rex.", "Rex")
    assert not contains_value("it is Rexford", "Rex")
