"""The loop around an algorithm: which episodes a step is made on, and what it may change."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from common.episode import Episode
from common.models.reactive.parts import PARTS, part_of
from learner.parallel.group import OneRank
from learner.policies.protocol import TokenBatch
from learner.policies.reactive import ReactivePolicy
from learner.rl.update import minibatches
from tests.hand_made import make_case
from tests.local_learner import LocalLearner
from tests.updates import make_update, mrl


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}


def test_minibatches_of_two_ranks_are_those_of_one_and_hold_each_episode_once() -> None:
    whole = list(minibatches(list(range(7)), 7, 3, 5))
    assert sorted(place for chosen in whole for place in chosen) == list(range(7))
    assert [len(chosen) for chosen in whole] == [3, 2, 2]
    ranks = [[0, 2, 4, 6], [1, 3, 5]]
    for chosen, *parts in zip(whole, *(minibatches(own, 7, 3, 5) for own in ranks), strict=True):
        places = [own[i] for own, part in zip(ranks, parts, strict=True) for i in part]
        assert sorted(places) == chosen


def test_every_epoch_draws_minibatches_of_its_own() -> None:
    trained: list[list[str]] = []

    class Noting(ReactivePolicy):
        def evaluate(
            self, episodes: Sequence[Episode], temperature: float, queries: bool = False
        ) -> TokenBatch:
            trained.append([episode.id for episode in episodes])
            return super().evaluate(episodes, temperature, queries)

    case = make_case()
    update = make_update(copy.deepcopy(case.policy), mrl(ppo={"epochs": 12, "minibatches": 2}))
    update.policy = Noting(copy.deepcopy(case.policy), OneRank())
    update.run(update.evaluate(case.episodes, [0, 1]), [0, 1], 2, 0)
    epochs = [tuple(map(tuple, trained[i : i + 2])) for i in range(0, 24, 2)]
    assert set(epochs) == {(("1",), ("2",)), (("2",), ("1",))}


@pytest.mark.parametrize("iteration", [0, 1, 2])
def test_only_the_critic_learns_while_it_warms_up(iteration: int) -> None:
    case = make_case({"critic_warmup": 1})
    learner = LocalLearner(
        copy.deepcopy(case.policy), case.critic, case.reference, case.settings, steps=4
    )
    assert learner.critic is not None
    learner.iteration = iteration
    before, critic_before = weights(learner.policy), weights(learner.critic)
    learner.update(learner.credit(case.episodes))
    assert bool(changed(learner.policy, before)) == (iteration >= 1)
    assert changed(learner.critic, critic_before)


@pytest.mark.parametrize("trained", [(), ("decoder",), ("memory_attention", "encoder")])
def test_parts_that_are_frozen_stay_as_they_are(trained: tuple[str, ...]) -> None:
    """Decay of weights, which a gradient of zero does not stop, included."""
    case = make_case(trained=trained)
    learner = LocalLearner(
        copy.deepcopy(case.policy), case.critic, case.reference, case.settings, steps=4
    )
    before = weights(learner.policy)
    learner.update(learner.credit(case.episodes))
    assert {part_of(name) for name in changed(learner.policy, before)} == set(trained or PARTS)


def test_the_learning_rate_follows_the_iteration() -> None:
    case = make_case()
    rates = {"learning_rate": 0.01, "warmup_fraction": 0.5, "final_fraction": 1.0}
    learner = LocalLearner(
        copy.deepcopy(case.policy), case.critic, case.reference, mrl(optimizer=rates), steps=4
    )
    figures = [learner.update(learner.credit(case.episodes)) for _ in range(3)]
    assert [each["train/learning_rate"] for each in figures] == pytest.approx([0.005, 0.01, 0.01])
