"""What keeps an update from doing harm: rewards that are alike, a policy that has moved too far, a
gradient that is no number."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from common.config.stages import Optimizer
from common.failures import DataFailure
from learner.parallel.group import OneRank
from learner.parallel.optimizer import Trainer
from tests.hand_made import make_case
from tests.learner.test_bandit import OPENING, Bandit, Reward, for_good
from tests.local_learner import LocalLearner
from tests.updates import mrl


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


def test_a_minibatch_whose_ratios_exploded_is_passed_over_and_the_next_one_is_not() -> None:
    """One of two episodes was sampled by quite another policy. The critic learns from both."""
    case = make_case()
    usual, strange = case.episodes
    turns = [replace(turn, log_probs=[p - 9.0 for p in turn.log_probs]) for turn in strange.turns]
    strange = replace(strange, turns=tuple(turns))

    def learnt(**ppo: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], float | None]:
        settings = mrl(ppo={"epochs": 1, "minibatches": 2} | ppo)
        policy, critic = copy.deepcopy(case.policy), copy.deepcopy(case.critic)
        learner = LocalLearner(policy, critic, case.reference, settings, case.temperature)
        figures = learner.update(learner.credit([usual, strange]))
        assert learner.critic is not None
        skipped = figures.get("ppo/minibatches_skipped")
        return policy.state_dict(), learner.critic.state_dict(), skipped

    before = case.policy.state_dict()
    every, critic, skipped = learnt()
    assert skipped is None
    for limit, share in ((1e-9, 1.0), (3.0, 0.5), (100.0, 0.0)):
        policy, its_critic, skipped = learnt(skip_log_ratio=limit)
        assert skipped == share
        assert all(torch.equal(value, critic[name]) for name, value in its_critic.items())
        for weights, same in ((before, share == 1.0), (every, share == 0.0)):
            assert all(torch.equal(v, weights[name]) for name, v in policy.items()) == same


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "reinforce"])
def test_a_minibatch_without_signal_moves_nothing_but_the_critic(
    algorithm: str, skip: bool
) -> None:
    bandit = Bandit(algorithm, entropy=1.0, skip_without_signal=skip)
    learner = bandit.learner
    alike, differing = (
        learner.credit(bandit.play(0, reward, OPENING))
        for reward in (lambda answer: 0.7, lambda answer: answer / 10)
    )
    policy = copy.deepcopy(learner.policy.state_dict())
    critic = None if learner.critic is None else copy.deepcopy(learner.critic.state_dict())
    figures = learner.update(alike)
    same = all(torch.equal(v, policy[name]) for name, v in learner.policy.state_dict().items())
    assert same == skip, "the entropy moves it"
    name = "objective/minibatches_without_signal"
    assert figures.get(name) == (1.0 if skip else None)
    if critic is not None:
        assert not torch.equal(learner.critic.state_dict()["value.bias"], critic["value.bias"])
    figures = learner.update(differing)
    assert figures.get(name) == (0.0 if skip else None)
    assert not torch.equal(learner.policy.decoder.head.bias, policy["decoder.head.bias"])


class BesideAnother(OneRank):
    """A rank whose sums of some shape come out larger by what another rank has."""

    def __init__(self, *others: float):
        super().__init__()
        self._others = torch.tensor(others if len(others) > 1 else others[0], dtype=torch.float64)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + self._others if tensor.shape == self._others.shape else tensor


def moves_beside(group: OneRank, reward: Reward, **settings: Any) -> bool:
    """Whether one update moves the policy where all ranks together are `group`."""
    bandit = Bandit(epochs=1, entropy=0.1, **settings)
    lived = bandit.learner.credit(bandit.play(0, reward, OPENING))
    before = bandit.distribution()
    bandit.learner.parts.group = group
    bandit.learner.update(lived)
    return not torch.equal(bandit.distribution(), before)


def test_what_is_passed_over_is_decided_by_all_ranks_together() -> None:
    """Ratios of this rank are 1 and those of the other are not; here all answers earn the same, and
    there they do not."""
    for total, tokens, moves in ((100.0, 1.0, False), (0.1, 1.0, True), (100.0, 1e6, True)):
        group = BesideAnother(total, tokens)
        assert moves_beside(group, for_good, skip_log_ratio=0.5) == moves
    for different, moves in ((0.0, False), (3.0, True)):
        group = BesideAnother(different)
        assert moves_beside(group, lambda answer: 0.7, skip_without_signal=True) == moves


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
        trainer.update([model(x).square().sum()], 4)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], equal_nan=True)
