"""Which way learning goes: one query, one token as the answer, thirty updates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from common.episode import Episode, Turn
from common.models.reactive.config import RxTConfig
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from tests.local_learner import LocalLearner
from tests.updates import mrl

OPENING, OTHER_OPENING, QUERY = [2, 5, 8, 6], [2, 5, 9, 6], [2, 5, 10, 6]
GOOD = 11
UPDATES, EPISODES = 30, 24
Reward = Callable[[int], float]


class Bandit:
    """A policy that has not learnt anything, but for a liking of `GOOD`."""

    def __init__(self, algorithm: str = "ppo", **update: Any):
        torch.manual_seed(0)
        config = RxTConfig(
            vocab_size=16, width=16, layers=1, heads=2, query_heads=2, kv_heads=2, decoder_ff=16,
            encoder_ff=16, slots=2, max_tokens=8, initializer_range=0.1, initial_memory="learned",
        )  # fmt: skip
        policy = ReactiveTransformer(config).eval()
        policy.decoder.head.bias.data[GOOD] = 2.0
        section = {"kl": 0.0, "minibatches": 1, "epochs": 2} | update
        has_critic = algorithm in ("ppo", "a2c")
        if has_critic:
            section |= {"critic_learning_rate": 1e-2}
        stage = mrl(
            algorithm=algorithm,
            optimizer={"learning_rate": 1e-2, "warmup_fraction": 0.0, "final_fraction": 1.0},
            **{algorithm: section},
        )
        critic = Critic.from_policy(policy) if has_critic else None
        self.learner = LocalLearner(policy, critic, copy.deepcopy(policy), stage, steps=UPDATES)

    def distribution(self, opening: list[int] = OPENING) -> torch.Tensor:
        """Probabilities of all tokens as the answer to the query."""
        policy, said = self.learner.policy, torch.tensor([[*opening, 3]])
        mask = torch.ones_like(said, dtype=torch.bool)
        with torch.no_grad():
            memory = policy.remember(policy.initial_memory([0]), policy.encode(said, mask), mask)
            return policy.decode(torch.tensor([QUERY]), memory)[0, -1].softmax(-1)

    @property
    def good(self) -> float:
        return float(self.distribution()[GOOD])

    @property
    def entropy(self) -> float:
        probabilities = self.distribution()
        return -float((probabilities * probabilities.log()).sum())

    def play(self, update: int, reward: Reward, opening: list[int]) -> list[Episode]:
        probabilities = self.distribution(opening)
        draw = torch.Generator().manual_seed(update)
        answers = torch.multinomial(probabilities, EPISODES, replacement=True, generator=draw)
        return [
            Episode(
                str(i),
                f"0-{update:06d}-{i:05d}",
                0,
                (
                    Turn(opening, [3], [], []),
                    Turn(
                        QUERY,
                        [answer],
                        [float(probabilities[answer].log())],
                        [],
                        reward=reward(answer),
                    ),
                ),
                update,
                status="scored",
            )
            for i, answer in enumerate(answers.tolist())
        ]

    def learn(self, reward: Reward) -> None:
        for update in range(UPDATES):
            self.learner.update(self.learner.credit(self.play(update, reward, OPENING)))


def for_good(answer: int) -> float:
    return float(answer == GOOD)


def test_a_rewarded_answer_becomes_more_probable() -> None:
    bandit = Bandit()
    assert 0.2 < bandit.good < 0.5
    bandit.learn(for_good)
    assert bandit.good > 0.9


def test_a_punished_answer_becomes_less_probable() -> None:
    bandit = Bandit()
    bandit.learn(lambda answer: -for_good(answer))
    assert bandit.good < 0.05


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_large_kl_coefficient_holds_the_policy_to_the_reference(estimator: str) -> None:
    bandit = Bandit(kl=20.0, kl_estimator=estimator)
    before = bandit.distribution()
    bandit.learn(for_good)
    assert float((bandit.distribution() - before).abs().max()) < 0.1


def test_an_entropy_bonus_alone_flattens_the_distribution() -> None:
    bandit, left_alone = Bandit(entropy=0.1), Bandit()
    before = bandit.entropy
    for one in (bandit, left_alone):
        one.learn(lambda _: 0.0)
    assert left_alone.entropy == pytest.approx(before, abs=0.01)
    assert bandit.entropy > before + 0.3


def test_the_value_of_a_query_depends_on_the_interaction_before_it() -> None:
    """The same query and the same answers: they are worth something after one opening only."""
    bandit = Bandit()
    for update in range(UPDATES):
        worthy = bandit.play(update, lambda _: 1.0, OPENING)[:8]
        worthless = bandit.play(update, lambda _: 0.0, OTHER_OPENING)[:8]
        experience = bandit.learner.credit([*worthy, *worthless])
        bandit.learner.update(experience)
    values = experience.values[:, 0]
    assert float(values[:8].mean() - values[8:].mean()) > 0.7
    assert float(values[:8].std()) < 1e-5
