"""What plain computations of the stages' objectives share: a small model, conversations, and the
comparison of losses and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.config.stages import Optimizer
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.unroll import TurnTokens
from learner.parallel.group import OneRank
from learner.parallel.optimizer import Trainer, combine
from learner.stages.supervised import Objective

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


def plain_conversations() -> list[list[TurnTokens]]:
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
