"""The objectives of the supervised stages against plain computations of them, in float64.

Each example goes through the models alone, and the whole path counts: from the objective's terms
over their weights and counts to the gradients that the optimiser sees.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.config.stages import (
    JointLM,
    MemoryAware,
    MemoryPretrain,
    Optimizer,
    Reading,
)
from common.data.conversations import pairs_to_read
from common.episode import Fact, Interaction, Row
from common.models.layers.feed_forward import Routing
from common.models.reactive.unroll import TurnTokens
from common.seeding import derive, uniforms
from learner.parallel.group import OneRank
from learner.parallel.optimizer import Trainer, combine
from learner.stages.joint_lm import JointLMObjective
from learner.stages.memory_aware import MemoryAwareObjective
from learner.stages.memory_pretrain import MemoryPretrainObjective
from learner.stages.reading import ReadingObjective
from learner.stages.supervised import Objective
from tests.plain_memory import (
    distributions,
    encode,
    in_shape_of_memory,
    memory_around_write,
    router_loss,
)
from tests.plain_objectives import (
    CHOSEN,
    SEED,
    STEP,
    Plain,
    assert_same,
    make_model,
    negative_log_prob,
    plain_conversations,
)


@pytest.fixture(scope="module")
def conversations() -> list[list[TurnTokens]]:
    return plain_conversations()


# --- stage 3 --------------------------------------------------------------------------------------


def plain_memory_pretrain(settings: MemoryPretrain, conversations: list[list[TurnTokens]]) -> Plain:
    def plain(modules: dict[str, nn.Module]) -> tuple[Tensor, dict[str, float]]:
        model: Any = modules["model"]
        cosines, change = [], 0.0
        for i in CHOSEN:
            key = derive(SEED, "memory_pretrain", STEP, i)
            memory = model.initial_memory([key])
            for write, turn in enumerate(conversations[i]):
                old = memory if write == 0 else memory.detach()
                encoded, mask = encode(model, turn.remembered)
                encoded = encoded.detach()
                generator = torch.Generator().manual_seed(derive(key, "noise", write))
                drawn = torch.randn(encoded.shape[1:], generator=generator)
                memory = model.remember(old, encoded + settings.input_noise * drawn, mask)
                new = [0.9, 0.5, 0.45, 0.4][write]
                shift = uniforms(np.array([derive(key, "shift")]), np.array([write]))[0]
                new += settings.label_weight_shift * (2 * shift - 1)
                new = min(1.0, max(0.0, new))
                label = (1 - new) * old.detach() + new * in_shape_of_memory(
                    encoded, model.config.slots
                )
                generator = torch.Generator().manual_seed(derive(key, "label noise", write))
                drawn = torch.randn(memory.shape[1:], generator=generator)
                label = label + settings.label_noise * drawn
                slots = [
                    (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())
                    for a, b in zip(memory.flatten(0, 2), label.flatten(0, 2), strict=True)
                ]
                cosines.append(torch.stack(slots).mean())
                change += float((memory - old).detach().square().mean())
        mean = torch.stack(cosines).mean()
        return -mean, {
            "train/memory_cosine": float(mean.detach()),
            "memory/change": change / len(cosines),
        }

    return plain


@pytest.mark.parametrize("initial_memory", ["normal", "learned"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"input_noise": 0.5},
        {"label_noise": 0.5},
        {"label_weight_shift": 0.15},
        {"input_noise": 0.1, "label_noise": 0.2, "label_weight_shift": 0.9},
    ],
    ids=str,
)
def test_memory_pretraining_is_the_cosine_to_old_and_new_write_by_write(
    more: dict[str, float], initial_memory: str, conversations: list[list[TurnTokens]]
) -> None:
    settings = MemoryPretrain.model_validate({"stage": "memory_pretrain"} | more)
    model = make_model(initial_memory=initial_memory)
    objective = MemoryPretrainObjective(settings, model, conversations, SEED)
    assert_same(objective, plain_memory_pretrain(settings, conversations))


# --- stage 4 --------------------------------------------------------------------------------------


def plain_memory_aware(
    settings: MemoryAware, turns: int, conversations: list[list[TurnTokens]]
) -> Plain:
    def plain(modules: dict[str, nn.Module]) -> tuple[Tensor, dict[str, float]]:
        model: Any = modules["model"]
        loss, tokens, right = torch.zeros((), dtype=torch.float64), 0, 0
        routed: list[list[Routing]] = []
        for i in CHOSEN:
            told = conversations[i][:turns]
            initial = model.initial_memory([derive(SEED, "memory_aware", STEP, i)])
            for index, turn in enumerate(told):
                earlier = [before.remembered for before in told[:index]]
                _, memory = memory_around_write(model, initial, earlier, settings.bptt_turns)
                routed.append([])
                found = distributions(model, turn.query, turn.answer, memory, 1.0, routed[-1])
                nats, hits = negative_log_prob(found, list(turn.answer))
                loss, tokens, right = loss + nats, tokens + len(found), right + hits
        figures = {
            "train/loss_lm": float(loss.detach()) / tokens,
            "train/accuracy_lm": right / tokens,
        }
        loss = loss / tokens
        if model.config.experts:
            loss = loss + settings.router_loss * router_loss(routed, model.config.experts)
        return loss, figures

    return plain


@pytest.mark.parametrize(
    ("more", "turns", "shape"),
    [
        ({"bptt_turns": 1}, 4, {}),
        ({"bptt_turns": 2}, 4, {"initial_memory": "learned"}),
        ({"bptt_turns": "all"}, 4, {"initial_memory": "learned"}),
        ({"steps": 20, "first_follow_ups": 1}, 3, {}),
        ({"router_loss": 0.5}, 4, {"experts": 3, "experts_per_token": 2}),
    ],
    ids=str,
)
def test_memory_aware_training_predicts_every_answer_from_its_memory(
    more: dict[str, Any],
    turns: int,
    shape: dict[str, Any],
    conversations: list[list[TurnTokens]],
) -> None:
    settings = MemoryAware.model_validate({"stage": "memory_aware"} | more)
    objective = MemoryAwareObjective(settings, make_model(**shape), conversations, SEED)
    assert_same(objective, plain_memory_aware(settings, turns, conversations))


def plain_weighted(settings: MemoryAware, conversations: list[list[TurnTokens]]) -> Plain:
    """Stage 4 with weights of turns and a price on what writes replace; gradients of all turns."""

    def plain(modules: dict[str, nn.Module]) -> tuple[Tensor, dict[str, float]]:
        model: Any = modules["model"]
        loss, weights, right = torch.zeros((), dtype=torch.float64), 0.0, 0.0
        shares: list[Tensor] = []
        for i in CHOSEN:
            memory = model.initial_memory([derive(SEED, "memory_aware", STEP, i)])
            needed = max((k for k, turn in enumerate(conversations[i]) if turn.weight), default=0)
            for index, turn in enumerate(conversations[i][: needed + 1]):
                if turn.weight:
                    found = distributions(model, turn.query, turn.answer, memory, 1.0, [])
                    nats, hits = negative_log_prob(found, list(turn.answer))
                    loss, right = loss + turn.weight * nats, right + turn.weight * hits
                    weights += turn.weight * len(found)
                if index < needed:
                    encoded, mask = encode(model, turn.remembered)
                    memory = model.remember(memory, encoded, mask, shares)
        replaced = torch.stack([share.mean() for share in shares]).mean()
        figures = {
            "train/loss_lm": float(loss.detach()) / weights,
            "train/accuracy_lm": right / weights,
            "memory/replaced": float(replaced.detach()),
        }
        return loss / weights + settings.gate_penalty * replaced, figures

    return plain


@pytest.mark.parametrize(
    "gate",
    [
        {"residual_gate": "per_number", "gate_stretch": 0.1},
        {"residual_gate": "static"},
        {"residual_gate": "linear", "gate_activation": "tanh"},
    ],
    ids=str,
)
def test_answers_count_by_their_weights_and_writes_pay_for_what_they_replace(
    gate: dict[str, Any], conversations: list[list[TurnTokens]]
) -> None:
    weights = [1.0, 0.0, 0.25, 2.0, 0.0, 1.0, 0.5, 1.0, 1.0, 0.0]
    parts = iter(weights)
    told = [[replace(turn, weight=next(parts)) for turn in turns] for turns in conversations]
    settings = MemoryAware(stage="memory_aware", gate_penalty=0.3)
    assert_same(
        MemoryAwareObjective(settings, make_model(memory_attention="self", **gate), told, SEED),
        plain_weighted(settings, told),
    )


def test_a_batch_in_which_nothing_counts_has_no_loss(conversations: list[list[TurnTokens]]) -> None:
    told = [[replace(turn, weight=0.0) for turn in turns] for turns in conversations]
    objective = MemoryAwareObjective(MemoryAware(stage="memory_aware"), make_model(), told, SEED)
    terms = {term.name: term for term in objective.terms(CHOSEN, STEP, OneRank())}
    assert (float(terms["train/loss_lm"].sum.detach()), terms["train/loss_lm"].count) == (0.0, 0.0)


def test_a_gate_penalty_begins_where_it_is_told_to(conversations: list[list[TurnTokens]]) -> None:
    settings = MemoryAware(stage="memory_aware", steps=10, gate_penalty=0.3, gate_penalty_from=0.5)
    objective = MemoryAwareObjective(settings, make_model(), conversations, SEED)

    def coefficient(step: int) -> float:
        terms = {term.name: term for term in objective.terms(CHOSEN, step, OneRank())}
        return terms["memory/replaced"].coefficient

    assert [coefficient(step) for step in (0, 4, 5, 9)] == [0.0, 0.0, 0.3, 0.3]


@pytest.mark.parametrize(
    "shape", [{"memory_attention": "last_interaction"}, {"residual_gate": "none"}], ids=str
)
def test_memory_without_gates_pays_no_penalty(
    shape: dict[str, Any], conversations: list[list[TurnTokens]]
) -> None:
    model = make_model(**shape)
    losses = []
    for penalty in (0.0, 0.3):
        settings = MemoryAware(stage="memory_aware", gate_penalty=penalty)
        objective = MemoryAwareObjective(settings, model, conversations, SEED)
        loss, sums = combine(objective.terms(CHOSEN, STEP, OneRank()), OneRank())
        losses.append(float(loss.detach()))
        assert sums["memory/replaced"] == (0.0, 0.0)
    assert losses[0] == losses[1]


def test_an_interaction_that_stands_several_times_is_encoded_once(
    conversations: list[list[TurnTokens]], monkeypatch: pytest.MonkeyPatch
) -> None:
    same, other = conversations[2][0], conversations[2][1]
    told = [[same, other, same], [same, same, other]]
    model, encoded = make_model(), []
    encode_all = model.encode

    def counted(tokens: Tensor, mask: Tensor) -> Tensor:
        encoded.append(len(tokens))
        return encode_all(tokens, mask)

    monkeypatch.setattr(model, "encode", counted)
    objective = MemoryAwareObjective(MemoryAware(stage="memory_aware"), model, told, SEED)
    objective.terms([0, 1], STEP, OneRank())
    assert encoded == [2]


# --- reading --------------------------------------------------------------------------------------


def plain_reading(pairs: list[tuple[TurnTokens, TurnTokens]]) -> Plain:
    def plain(modules: dict[str, nn.Module]) -> tuple[Tensor, dict[str, float]]:
        model: Any = modules["model"]
        loss, tokens, right = torch.zeros((), dtype=torch.float64), 0, 0
        for before, asked in (pairs[i] for i in CHOSEN):
            encoded, _ = encode(model, before.remembered)
            memory = in_shape_of_memory(encoded, model.config.slots)
            found = distributions(model, asked.query, asked.answer, memory, 1.0, [])
            nats, hits = negative_log_prob(found, list(asked.answer))
            loss, tokens, right = loss + nats, tokens + len(found), right + hits
        return loss / tokens, {
            "train/loss_lm": float(loss.detach()) / tokens,
            "train/accuracy_lm": right / tokens,
        }

    return plain


def test_reading_predicts_an_answer_from_the_encoding_of_the_turn_before(
    conversations: list[list[TurnTokens]],
) -> None:
    """With a gradient into the encoder, and none into memory attention."""
    turns = [turn for told in conversations for turn in told]
    pairs = list(itertools.pairwise(turns))
    assert_same(
        ReadingObjective(Reading(stage="reading"), make_model(), pairs), plain_reading(pairs)
    )


def test_turns_that_ask_only_for_what_one_turn_says_are_read_with_it() -> None:
    def turn(query: str, *said_in: int) -> Interaction:
        return Interaction(query, "a", facts=tuple(Fact(f"v{k}", k) for k in said_in))

    told = (turn("one"), turn("two", 1), turn("three", 1), turn("four", 3, 2), turn("five", 4))
    row = Row("opening", "a", told)
    assert [(before.query, asked.query) for before, asked in pairs_to_read([row])] == [
        ("one", "two"),
        ("one", "three"),
        ("four", "five"),
    ]


def test_of_conversations_without_facts_every_follow_up_is_read() -> None:
    row = Row("opening", "a", (Interaction("one", "a"), Interaction("two", "a")))
    assert [(before.query, asked.query) for before, asked in pairs_to_read([row])] == [
        ("opening", "one"),
        ("one", "two"),
    ]


# --- what is trained ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "trained"),
    [
        ("joint_lm", {"embedding", "encoder", "decoder", "masked_lm_head"}),
        ("memory_pretrain", {"memory_attention", "first_memory"}),
        ("reading", {"embedding", "encoder", "decoder"}),
        (
            "memory_aware",
            {"embedding", "encoder", "decoder", "memory_attention", "first_memory"},
        ),
    ],
    ids=["joint_lm", "memory_pretrain", "reading", "memory_aware"],
)
def test_a_stage_changes_its_own_parts_and_no_others(
    kind: str, trained: set[str], conversations: list[list[TurnTokens]]
) -> None:
    """Decay of weights, which a gradient of zero does not stop, included."""
    model = make_model(initial_memory="learned")
    objective: Objective
    match kind:
        case "joint_lm":
            sequences = [list(turns[-1].remembered) for turns in conversations]
            settings = JointLM(stage="joint_lm", mask_probability=0.4)
            objective = JointLMObjective(settings, model, sequences, [0] * 4, SEED)
        case "memory_pretrain":
            pretrain = MemoryPretrain(stage="memory_pretrain")
            objective = MemoryPretrainObjective(pretrain, model, conversations, SEED)
        case "reading":
            pairs = [(turns[0], turns[-1]) for turns in conversations]
            objective = ReadingObjective(Reading(stage="reading"), model, pairs)
        case _:
            aware = MemoryAware(stage="memory_aware")
            objective = MemoryAwareObjective(aware, model, conversations, SEED)
    before = {
        name: p.detach().clone()
        for prefix, module in objective.modules.items()
        for name, p in module.named_parameters(prefix)
    }
    rates = Optimizer(weight_decay=0.5, warmup_fraction=0.0)
    trainer = Trainer(objective.modules, rates, 9, OneRank(), objective.trainable)
    trainer.update([combine(objective.terms(CHOSEN, STEP, OneRank()), OneRank())[0]], 0)
    changed = {
        name.removeprefix("model.").split(".")[0]
        for prefix, module in objective.modules.items()
        for name, p in module.named_parameters(prefix)
        if not torch.equal(p, before[name])
    }
    assert changed == trained
