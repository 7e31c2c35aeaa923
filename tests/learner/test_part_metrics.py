"""Metrics of parts: gradient norms of parts of a model, rewards by turn and by distance."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from common.config.stages import Optimizer
from common.telemetry.metrics import Metrics
from learner.metrics import record_episodes, span
from learner.parallel.group import OneRank
from learner.parallel.optimizer import Trainer
from learner.rl.experience import Experience
from tests.watched_runs import conversation


@pytest.mark.parametrize("limit", [1e9, 0.01])
def test_gradient_norms_of_parts_are_those_before_clipping(limit: float) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": nn.Linear(3, 4), "decoder": nn.Linear(4, 2)})
    head = nn.Linear(2, 1)
    unused = nn.Linear(1, 1)
    trainer = Trainer(
        {"model": model, "head": head, "unused": unused},
        Optimizer(max_grad_norm=limit),
        9,
        OneRank(),
    )
    loss = head(model["decoder"](model["encoder"](torch.ones(1, 3)))).square().sum()
    expected = {
        name: math.sqrt(
            sum(
                float(grad.square().sum())
                for grad in torch.autograd.grad(loss, part.parameters(), retain_graph=True)
            )
        )
        for name, part in {**model, "head": head}.items()
    }
    norm, _ = trainer.update([loss], 0)
    found = trainer.gradient_norms(lambda name: name.removeprefix("model.").partition(".")[0])
    assert found == pytest.approx(expected | {"unused": 0.0}, rel=1e-4)
    assert math.hypot(*found.values()) == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(
    ("number", "label"),
    [(1, "1"), (8, "8"), (9, "9-16"), (16, "9-16"), (17, "17-32"), (64, "33-64"), (65, "65+")],
)
def test_a_count_of_any_size_has_one_of_few_labels(number: int, label: str) -> None:
    assert span(number) == label


def test_rewards_are_told_by_turn_and_by_distance() -> None:
    episode = conversation("1-000000-1", 0, right=True)
    *turns, last = episode.turns
    episode = replace(episode, turns=(*turns, replace(last, reward=0.25)))
    metrics, nothing = Metrics(), torch.zeros(1, 3)
    record_episodes(
        Experience([episode], *[nothing] * 5, bootstrap=torch.zeros(1), reference=[]), (), metrics
    )
    row = metrics.flush(1, "mrl")
    assert row["reward/by_turn{turn=2}"] == pytest.approx(0.8)
    assert row["reward/by_turn{turn=3}"] == 0.25
    assert "reward/by_turn{turn=1}" not in row, "nothing was scored"
    assert row["reward/by_distance{distance=1}"] == pytest.approx(0.8)
    assert row["reward/by_distance{distance=3}"] == 0.25


def test_components_are_told_by_turn_and_by_distance_of_few_labels() -> None:
    """Of long conversations too: a label for each turn would be a series for each."""
    episode = conversation("1-000000-1", 0, right=True)
    opening, plain, asked, where = episode.turns
    far = replace(where, rewards={"bleu": 0.1}, reward=0.1)
    played = replace(episode, turns=(opening, *[plain] * 68, asked, far))
    metrics, nothing = Metrics(), torch.zeros(1, 70)
    record_episodes(
        Experience([played], *[nothing] * 5, bootstrap=torch.zeros(1), reference=[]), (), metrics
    )
    row = metrics.flush(1, "mrl")
    found = {key: value for key, value in row.items() if key.startswith("reward/component_by")}
    assert found == {
        "reward/component_by_turn{component=bleu,turn=65+}": pytest.approx((0.5 + 0.1) / 2),
        "reward/component_by_turn{component=recall,turn=65+}": 1.0,
        "reward/component_by_distance{component=bleu,distance=65+}": pytest.approx((0.5 + 0.1) / 2),
        "reward/component_by_distance{component=recall,distance=65+}": 1.0,
    }
    near = Metrics()
    record_episodes(
        Experience([episode], *[nothing] * 5, bootstrap=torch.zeros(1), reference=[]), (), near
    )
    row = near.flush(1, "mrl")
    assert row["reward/component_by_turn{component=bleu,turn=2}"] == 0.5
    assert row["reward/component_by_distance{component=recall,distance=1}"] == 1.0
