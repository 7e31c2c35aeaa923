"""The objectives of the supervised stages against plain computations of them, in float64.

Each example goes through the models alone, and the whole path counts: from the objective's terms
over their weights and counts to the gradients that the optimiser sees.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.config.stages import (
    SFT,
    JointLM,
    MemoryAware,
    MemoryPretrain,
    Optimizer,
    Reading,
)
from common.data.conversations import pairs_to_read
from common.episode import Fact, Interaction, Row
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
from learner.stages.reading import ReadingObjective
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
    """Four of 1, 2, 4 and 3 turns, each turn of another length."""
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
    trainer.update([loss], STEP)
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


def plain_joint_lm(
    settings: JointLM,
    sequences: list[list[int]],
    prompts: list[int],
    weights: list[float] | None = None,
) -> Plain:
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

    def seen_of(model: ReactiveTransformer, sequence: list[int], key: int, place: int) -> int:
        """Token that the encoder sees in place of one that it has to guess."""
        share = draw(key, "replacement", len(sequence))[place]
        if share < settings.mask_random:
            drawn = draw(key, "random token", len(sequence))[place]
            return SPECIAL + int(drawn * (model.config.vocab_size - SPECIAL))
        return sequence[place] if share >= 1 - settings.mask_keep else MASK

    def plain(modules: dict[str, nn.Module]) -> tuple[Tensor, dict[str, float]]:
        model: Any = modules["model"]
        loss, guessing = (torch.zeros((), dtype=torch.float64) for _ in range(2))
        tokens, right, guesses, right_guesses = 0.0, 0.0, 0, 0
        routed: list[list[Routing]] = []
        for i in CHOSEN:
            key, sequence = derive(SEED, settings.stage, STEP, i), sequences[i]
            hidden = draw(key, "mask", len(sequence)) < settings.mask_probability
            places = [p for p, token in enumerate(sequence) if hidden[p] and token >= SPECIAL]
            encoded, _ = encode(
                model,
                [
                    seen_of(model, sequence, key, p) if p in places else token
                    for p, token in enumerate(sequence)
                ],
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
            own = 1.0 if weights is None else weights[i]
            loss, right = loss + own * nats, right + own * hits
            tokens += own * len(found)
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


def plain_neighbours(settings: JointLM, sequences: list[list[int]], prompts: list[int]) -> Plain:
    """As `plain_joint_lm`, with the tokens around each token told from its encoding."""
    rest = plain_joint_lm(settings, sequences, prompts)
    offsets = [-2, -1, 1, 2, 3, -3]
    offsets = sorted(offset for offset in offsets if abs(offset) <= settings.neighbours)
    order = np.random.default_rng(derive(SEED, settings.stage, "offsets", STEP)).permutation(
        len(offsets)
    )

    def plain(modules: dict[str, nn.Module]) -> tuple[Tensor, dict[str, float]]:
        loss, figures = rest(modules)
        model, head = modules["model"], modules["neighbour_head"]
        told, count, right = torch.zeros((), dtype=torch.float64), 0, 0
        for i in CHOSEN:
            key, sequence = derive(SEED, settings.stage, STEP, i), sequences[i]
            streams = np.full(len(sequence), derive(key, "mask"))
            drawn = uniforms(streams, np.arange(len(sequence))) < settings.mask_probability
            guessed = [p for p, token in enumerate(sequence) if drawn[p] and token >= SPECIAL]
            encoded, _ = encode(
                model, [MASK if p in guessed else token for p, token in enumerate(sequence)]
            )
            for which in order[:4]:
                for here in range(len(sequence)):
                    there = here + offsets[which]
                    if not 0 <= there < len(sequence) or {here, there} & {*guessed}:
                        continue
                    scores = head.head(head.maps[int(which)](encoded[0, -1, here]))
                    nats, hit = negative_log_prob([scores.log_softmax(0)], [sequence[there]])
                    told, count, right = told + nats, count + 1, right + hit
        figures["train/loss_neighbours"] = float(told.detach()) / count
        figures["train/accuracy_neighbours"] = right / count
        return loss + told / count, figures

    return plain


@pytest.mark.parametrize("reach", [1, 3])
@pytest.mark.parametrize("kind", ["joint_lm", "sft"])
def test_neighbours_are_told_from_the_encoding_of_tokens_that_were_seen(
    kind: str, reach: int, conversations: list[list[TurnTokens]]
) -> None:
    sequences = [list(turns[-1].remembered) for turns in conversations]
    settings = (SFT if kind == "sft" else JointLM).model_validate(
        {"stage": kind, "mask_probability": 0.3, "neighbours": reach}
    )
    objective = JointLMObjective(settings, make_model(), sequences, [0] * 4, SEED)
    assert_same(objective, plain_neighbours(settings, sequences, [0] * 4))


SPLIT = {"mask_probability": 0.5, "mask_random": 0.3, "mask_keep": 0.3}
NOISY = {"mask_probability": 0.4, "hide_probability": 0.3, "noise": 0.5, "blind_fraction": 0.5}


@pytest.mark.parametrize(
    ("more", "shape"),
    [
        ({"mask_probability": 0.4}, {}),
        (SPLIT, {}),
        (NOISY, {"initial_memory": "learned"}),
        (NOISY | {"router_loss": 0.5}, {"experts": 3, "experts_per_token": 2}),
    ],
    ids=["quiet", "40/30/30", "noisy", "experts"],
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


def test_interactions_count_by_their_weights_in_the_decoders_loss_alone(
    conversations: list[list[TurnTokens]],
) -> None:
    turns = [turns[-1] for turns in conversations]
    sequences, prompts = [list(turn.remembered) for turn in turns], [len(t.query) for t in turns]
    settings, weights = SFT(stage="sft", mask_probability=0.4), [0.5, 1.0, 0.25, 3.0]
    objective = JointLMObjective(settings, make_model(), sequences, prompts, SEED, weights)
    assert_same(objective, plain_joint_lm(settings, sequences, prompts, weights))


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
