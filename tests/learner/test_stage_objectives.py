"""The objectives of the supervised stages against plain computations of them, in float64.

Each example goes through the models alone, and the whole path counts: from the objective's terms
over their weights and counts to the gradients that the optimiser sees.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.config.stages import SFT, JointLM, MemoryAware, MemoryPretrain, Optimizer
from common.models.layers.feed_forward import Routing
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.unroll import TurnTokens
from common.seeding import derive, uniforms
from learner.parallel.group import OneRank
from learner.parallel.optimizer import Trainer, combine
from learner.stages.joint_lm import JointLMObjective
from learner.stages.memory_aware import MemoryAwareObjective
from learner.stages.memory_pretrain import MemoryPretrainObjective
from learner.stages.supervised import Objective
from tests.plain_memory import (
    distributions,
    encode,
    in_shape_of_memory,
    memory_around_write,
    router_loss,
)

SEED, STEP, MASK, SPECIAL = 3, 4, 4, 8
CHOSEN = [2, 0, 3]
"""Examples of the step: not all, and not in their order."""
Plain = Callable[[dict[str, nn.Module]], tuple[Tensor, dict[str, float]]]
"""Loss and figures of modules in float64, which come by name."""


def make_model(**shape: Any) -> ReactiveTransformer:
    """Every parameter, those that begin as zeros included, is large enough to matter."""
    torch.manual_seed(3)
    sizes = {"vocab_size": 40, "width": 16, "layers": 2, "heads": 2, "slots": 3, "max_tokens": 16}
    sizes |= {"query_heads": 2, "kv_heads": 1, "decoder_ff": 12, "encoder_ff": 12}
    config = RxTConfig(**sizes | {"initializer_range": 0.3, "initial_memory_std": 1.0} | shape)
    model = ReactiveTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


@pytest.fixture(scope="module")
def conversations() -> list[list[TurnTokens]]:
    """Of 1, 2, 4 and 3 turns, each turn of another length."""
    draw = torch.Generator().manual_seed(1)

    def ids(least: int) -> list[int]:
        count = least + int(torch.randint(0, 5, (1,), generator=draw))
        return torch.randint(8, 40, (count,), generator=draw).tolist()

    def turn() -> TurnTokens:
        query, answer = [2, 5, *ids(1), 6], [*ids(1), 3]
        return TurnTokens(query, answer, [*query, *answer])

    return [[turn() for _ in range(count)] for count in (1, 2, 4, 3)]


def assert_same(objective: Objective, plain: Plain) -> None:
    """Figures, loss and the gradient of every parameter; those that are frozen have none."""
    doubles = {name: copy.deepcopy(m).double() for name, m in objective.modules.items()}
    expected, figures = plain(doubles)
    expected.backward()
    trainer = Trainer(
        objective.modules, Optimizer(max_grad_norm=1e9), 9, OneRank(), objective.trainable
    )
    loss, sums = combine(objective.terms(CHOSEN, STEP, OneRank()), OneRank())
    trainer.update(loss, STEP)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, value in figures.items():
        assert sums[name][0] / sums[name][1] == pytest.approx(value, rel=1e-5), name
    for prefix, module in objective.modules.items():
        twins = dict(doubles[prefix].named_parameters(prefix))
        for name, parameter in module.named_parameters(prefix):
            if not objective.trainable(name):
                assert parameter.grad is None
                continue
            assert parameter.grad is not None
            wanted = twins[name].grad
            torch.testing.assert_close(
                parameter.grad.double(),
                torch.zeros_like(twins[name]) if wanted is None else wanted,
                rtol=1e-4,
                atol=1e-5,
                msg=lambda text, name=name: f"gradient of {name}: {text}",
            )


def negative_log_prob(log_probs: list[Tensor], targets: list[int]) -> tuple[Tensor, int]:
    """Its sum over the targets, and how many of them are the most probable token."""
    total, right = torch.zeros((), dtype=torch.float64), 0
    for row, token in zip(log_probs, targets, strict=True):
        total = total - row[token]
        right += int(row.argmax()) == token
    return total, right


# --- stages 1 and 2 -------------------------------------------------------------------------------


def plain_joint_lm(settings: JointLM, sequences: list[list[int]], prompts: list[int]) -> Plain:
    def draw(key: int, purpose: str, count: int) -> np.ndarray:
        return uniforms(np.full(count, derive(key, purpose)), np.arange(count))

    def memory_of(model: ReactiveTransformer, encoded: Tensor, key: int) -> Tensor:
        seen = encoded.detach().clone()
        seen[:, :, draw(key, "hide", seen.shape[2]) < settings.hide_probability] = 0.0
        memory = in_shape_of_memory(seen, model.config.slots)
        generator = torch.Generator().manual_seed(derive(key, "noise"))
        memory = memory + settings.noise * torch.randn(memory.shape[1:], generator=generator)
        if uniforms(np.array([key]), np.array([10**6]))[0] < settings.blind_fraction:
            return model.initial_memory([key]).detach()
        return memory

    def plain(modules: dict[str, nn.Module]) -> tuple[Tensor, dict[str, float]]:
        model: Any = modules["model"]
        loss, guessing = (torch.zeros((), dtype=torch.float64) for _ in range(2))
        tokens = right = guesses = right_guesses = 0
        routed: list[list[Routing]] = []
        for i in CHOSEN:
            key, sequence = derive(SEED, settings.stage, STEP, i), sequences[i]
            hidden = draw(key, "mask", len(sequence)) < settings.mask_probability
            places = [p for p, token in enumerate(sequence) if hidden[p] and token >= SPECIAL]
            encoded, _ = encode(
                model, [MASK if p in places else token for p, token in enumerate(sequence)]
            )
            for p in places:
                scores = modules["masked_lm_head"](encoded[0, -1, p])
                nats, hit = negative_log_prob([scores.log_softmax(0)], [sequence[p]])
                guessing, guesses, right_guesses = guessing + nats, guesses + 1, right_guesses + hit
            start, routings = max(1, prompts[i]), []
            found = distributions(
                model, sequence[:start], sequence[start:], memory_of(model, encoded, key), 1.0,
                routings,
            )  # fmt: skip
            routed.append(routings)
            nats, hits = negative_log_prob(found, sequence[start:])
            loss, tokens, right = loss + nats, tokens + len(found), right + hits
        figures = {
            "train/loss_masked_lm": float(guessing.detach()) / guesses,
            "train/loss_lm": float(loss.detach()) / tokens,
            "train/accuracy_masked_lm": right_guesses / guesses,
            "train/accuracy_lm": right / tokens,
        }
        total = guessing / guesses + loss / tokens
        if model.config.experts:
            total = total + settings.router_loss * router_loss(routed, model.config.experts)
        return total, figures

    return plain


NOISY = {"mask_probability": 0.4, "hide_probability": 0.3, "noise": 0.5, "blind_fraction": 0.5}


@pytest.mark.parametrize(
    ("more", "shape"),
    [
        ({"mask_probability": 0.4}, {}),
        (NOISY, {"initial_memory": "learned"}),
        (NOISY | {"router_loss": 0.5}, {"experts": 3, "experts_per_token": 2}),
    ],
    ids=["quiet", "noisy", "experts"],
)
@pytest.mark.parametrize("kind", ["joint_lm", "sft"])
def test_language_modelling_of_encoder_and_decoder_is_the_plain_sum_of_both(
    kind: str, more: dict[str, Any], shape: dict[str, Any], conversations: list[list[TurnTokens]]
) -> None:
    turns = [turns[-1] for turns in conversations]
    sequences = [list(turn.remembered) for turn in turns]
    prompts = [len(turn.query) if kind == "sft" else 0 for turn in turns]
    settings = (SFT if kind == "sft" else JointLM).model_validate({"stage": kind} | more)
    objective = JointLMObjective(settings, make_model(**shape), sequences, prompts, SEED)
    assert_same(objective, plain_joint_lm(settings, sequences, prompts))


# --- stage 3 --------------------------------------------------------------------------------------


def plain_memory_pretrain(noise: float, conversations: list[list[TurnTokens]]) -> Plain:
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
                memory = model.remember(old, encoded + noise * drawn, mask)
                new = [0.9, 0.5, 0.45, 0.4][write]
                label = (1 - new) * old.detach() + new * in_shape_of_memory(
                    encoded, model.config.slots
                )
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
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_memory_pretraining_is_the_cosine_to_old_and_new_write_by_write(
    noise: float, initial_memory: str, conversations: list[list[TurnTokens]]
) -> None:
    settings = MemoryPretrain(stage="memory_pretrain", input_noise=noise)
    model = make_model(initial_memory=initial_memory)
    objective = MemoryPretrainObjective(settings, model, conversations, SEED)
    assert_same(objective, plain_memory_pretrain(noise, conversations))


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
                _, memory = memory_around_write(
                    model, initial, earlier, settings.bptt_turns, settings.train_encoder
                )
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
        ({"train_encoder": False}, 4, {"initial_memory": "learned"}),
        ({"train_memory": False}, 4, {"initial_memory": "learned"}),
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


# --- what is trained ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "trained"),
    [
        ("joint_lm", {"embedding", "encoder", "decoder", "masked_lm_head"}),
        ("memory_pretrain", {"memory_attention", "first_memory"}),
        (
            "memory_aware",
            {"embedding", "encoder", "decoder", "memory_attention", "first_memory"},
        ),
    ],
    ids=["joint_lm", "memory_pretrain", "memory_aware"],
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
    trainer.update(combine(objective.terms(CHOSEN, STEP, OneRank()), OneRank())[0], 0)
    changed = {
        name.removeprefix("model.").split(".")[0]
        for prefix, module in objective.modules.items()
        for name, p in module.named_parameters(prefix)
        if not torch.equal(p, before[name])
    }
    assert changed == trained
