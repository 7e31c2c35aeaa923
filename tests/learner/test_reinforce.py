"""REINFORCE: its baseline, its direction, and that it builds no critic."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from common.config.algorithms import Reinforce
from common.episode import Episode, Turn
from learner.parallel.group import OneRank
from learner.rl.algorithms.reinforce import MovingBaseline
from learner.rl.experience import Experience
from tests.learner.test_bandit import GOOD, OPENING, UPDATES, Bandit


def experience(rewards: Sequence[Sequence[float | None]]) -> Experience:
    """Episodes of as many answered turns, of which None has no score."""
    table = torch.tensor([[reward or 0.0 for reward in row] for row in rewards])
    scored = torch.tensor([[reward is not None for reward in row] for row in rewards])
    nothing = torch.zeros_like(table)
    turns = tuple(Turn([1], [2], [-0.5], [2]) for _ in range(table.shape[1] + 1))
    episodes = [Episode(str(i), str(i), i, turns, 0) for i in range(len(rewards))]
    return Experience(episodes, scored | True, scored, table, nothing, nothing, nothing[:, 0], [])


def credits(rewards: Sequence[float], **settings: Any) -> tuple[list[float], list[float]]:
    """Baselines and advantages of batches of one reward each."""
    algorithm = MovingBaseline(Reinforce(**settings))
    baselines, advantages = [], []
    for reward in rewards:
        credited = algorithm.credit(experience([[reward]]), [0], OneRank())
        baselines.append(credited.figures["reinforce/baseline"])
        advantages.append(float(credited.advantages))
    return baselines, advantages


REWARDS = [0.4, 0.6, 0.5, 0.9]


@pytest.mark.parametrize(
    ("settings", "baselines"),
    [
        ({"baseline": "including"}, [0.4, 0.5, 0.5, 0.6]),
        ({"baseline": "excluding"}, [0.0, 0.4, 0.5, 0.5]),
        ({"baseline": "including", "baseline_decay": 0.9}, [0.4, 0.42, 0.428, 0.4752]),
    ],
)
def test_the_baseline_is_the_average_of_returns(
    settings: dict[str, Any], baselines: list[float]
) -> None:
    found, advantages = credits(REWARDS, **settings)
    assert found == pytest.approx(baselines)
    expected = [reward - baseline for reward, baseline in zip(REWARDS, baselines, strict=True)]
    assert advantages == pytest.approx(expected, abs=1e-6)


def test_a_batch_counts_each_scored_turn_once_and_discounts_over_turns() -> None:
    algorithm = MovingBaseline(Reinforce(discount=0.5))
    first = algorithm.credit(experience([[0.0, None, 1.0], [0.2, 0.2, 0.0]]), [0, 1], OneRank())
    returns = [[0.5, 0.0, 1.0], [0.3, 0.2, 0.0]]
    torch.testing.assert_close(first.returns, torch.tensor(returns))
    second = algorithm.credit(experience([[1.0, 1.0, 1.0]]), [0], OneRank())
    assert second.figures["reinforce/baseline"] == pytest.approx(2.0 / 5)


class TwoRanks(OneRank):
    """The other rank holds returns of this sum and count."""

    def __init__(self, other: tuple[float, float]):
        super().__init__()
        self._other = torch.tensor(other, dtype=torch.float64)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + self._other if tensor.shape == (2,) else tensor


def test_the_baseline_is_over_all_ranks() -> None:
    algorithm = MovingBaseline(Reinforce(baseline="including"))
    credited = algorithm.credit(experience([[1.0]]), [0], TwoRanks((1.0, 3.0)))
    assert credited.figures["reinforce/baseline"] == pytest.approx(2.0 / 4)


def test_the_baseline_goes_on_from_a_checkpoint() -> None:
    whole, first, second = (MovingBaseline(Reinforce()) for _ in range(3))
    for reward in REWARDS:
        expected = whole.credit(experience([[reward]]), [0], OneRank())
    for reward in REWARDS[:2]:
        first.credit(experience([[reward]]), [0], OneRank())
    second.load_state(first.state())
    for reward in REWARDS[2:]:
        found = second.credit(experience([[reward]]), [0], OneRank())
    assert found.figures == expected.figures


@pytest.mark.parametrize(("sign", "least", "most"), [(1.0, 0.9, 1.0), (-1.0, 0.0, 0.05)])
def test_a_rewarded_answer_becomes_more_probable_and_a_punished_one_less(
    sign: float, least: float, most: float
) -> None:
    bandit = Bandit("reinforce")
    bandit.learn(lambda answer: sign * float(answer == GOOD))
    assert least <= bandit.good <= most


def test_nothing_of_a_critic_is_there() -> None:
    bandit = Bandit("reinforce")
    parts = bandit.learner.parts
    assert (parts.critic, parts.critic_trainer) == (None, None)
    assert parts.trainers.keys() == {"policy"}
    assert parts.modules.keys() == {"reference"}
    lived = bandit.learner.credit(bandit.play(UPDATES, lambda _: 1.0, OPENING))
    assert not lived.values.any()
    figures = bandit.learner.update(lived)
    assert not [name for name in figures if "value" in name or "critic" in name]


def test_the_loss_is_minus_the_advantage_times_the_log_probability() -> None:
    bandit = Bandit("reinforce")
    lived = bandit.learner.credit(bandit.play(0, lambda answer: answer / 10, OPENING))
    terms = {term.name: term for term in bandit.learner.parts.policy_terms(lived)}
    log_probs = torch.tensor([one.answered[0].log_probs[0] for one in lived.episodes])
    expected = -(lived.advantages[:, 0] * log_probs).sum()
    assert float(terms["reinforce/loss_policy"].sum.detach()) == pytest.approx(
        float(expected), rel=1e-5
    )
    unscored = dataclasses.replace(lived, scored=torch.zeros_like(lived.scored))
    terms = {term.name: term for term in bandit.learner.parts.policy_terms(unscored)}
    assert (float(terms["reinforce/loss_policy"].sum), terms["ppo/loss_kl"].count) == (0.0, 0.0)
