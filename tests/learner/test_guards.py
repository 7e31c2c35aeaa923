"""What keeps an update from doing harm: rewards that are alike, a policy that has moved too far, a
gradient that is no number."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from common.config.stages import Optimizer
from common.failures import DataFailure
from learner.parallel.group import OneRank
from learner.parallel.optimizer import Trainer
from tests.learner.test_bandit import OPENING, Bandit


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "reinforce"])
def test_rewards_that_are_all_alike_move_nothing(algorithm: str) -> None:
    bandit = Bandit(algorithm)
    before = bandit.distribution()
    bandit.learn(lambda answer: 0.7)
    # Weight decay moves it by 5e-4.
    torch.testing.assert_close(bandit.distribution(), before, atol=1e-3, rtol=0.0)
    for reward, without in ((lambda answer: 0.7, 1.0), (lambda answer: answer / 10, 0.0)):
        lived = bandit.learner.credit(bandit.play(0, reward, OPENING))
        assert lived.figures["objective/without_signal"] == without


def after_one_batch(**settings: Any) -> tuple[torch.Tensor, dict[str, float]]:
    bandit = Bandit(kl=0.1, **settings)
    figures = bandit.learner.update(
        bandit.learner.credit(bandit.play(0, lambda answer: answer / 10, OPENING))
    )
    return bandit.distribution(), figures


def test_passes_over_a_batch_stop_where_the_policy_has_moved_too_far() -> None:
    once, _ = after_one_batch(epochs=1)
    often, _ = after_one_batch(epochs=4)
    stopped, figures = after_one_batch(epochs=4, stop_kl=1e-9)
    torch.testing.assert_close(stopped, once)
    assert not torch.allclose(stopped, often)
    assert figures["ppo/passes_stopped"] == 0.5, "of the two that it looked at"
    patient, figures = after_one_batch(epochs=4, stop_kl=100.0)
    torch.testing.assert_close(patient, often)
    assert figures["ppo/passes_stopped"] == 0.0


@pytest.mark.parametrize("what", ["weight", "gradient"])
def test_a_number_that_is_none_is_named_and_not_learnt(what: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    trainer = Trainer({"model": model}, Optimizer(), 9, OneRank())
    x = torch.ones(1, 2)
    if what == "weight":
        with torch.no_grad():
            model[1].weight[0, 0] = float("nan")
    else:
        x[0, 1] = float("inf")
    before = copy.deepcopy(model.state_dict())
    where = "weight model.1.weight" if what == "weight" else "gradient of model.0.weight"
    with pytest.raises(DataFailure, match=f"step 5: the {where} is not finite"):
        trainer.update(model(x).square().sum(), 4)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], equal_nan=True)
