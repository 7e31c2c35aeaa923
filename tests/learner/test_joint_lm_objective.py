"""Joint language modelling compared with plain sums in loops: loss and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.config.stages import (
    SFT,
    JointLM,
)
from common.models.layers.feed_forward import Routing
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.unroll import TurnTokens
from common.seeding import derive, uniforms
from learner.stages.joint_lm import JointLMObjective
from tests.plain_memory import (
    distributions,
    encode,
    in_shape_of_memory,
    router_loss,
)
from tests.plain_objectives import (
    CHOSEN,
    MASK,
    SEED,
    SPECIAL,
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
