"""The best policy of a bandit that pays r less β nats of KL is known: reference · exp(r / β),
normalised (Ziegler et al. 2019, section 2). Every way to pay for KL must lead there."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from common.episode import Episode, Turn
from tests.tiny_policy import VOCABULARY, TinyModel, tiny_update
from tests.updates import mrl

BETA = 0.5
REWARDS = torch.tensor([0.0, 0.9, 0.3, 0.6, -0.4, 0.1], dtype=torch.float64)
COPIES = 200


def distribution(module: TinyModel) -> Tensor:
    return module([1], [0])[0].exp().detach()


def enumerated(probabilities: Tensor) -> list[Episode]:
    """Each token as often as it is probable, in `COPIES` answers: a batch without luck."""
    counts = (probabilities * COPIES).round().long()
    counts[counts.argmax()] += COPIES - int(counts.sum())
    tokens = torch.repeat_interleave(torch.arange(VOCABULARY), counts).tolist()
    opening = Turn([1], [2], [], [])
    return [
        Episode(
            str(i),
            str(i),
            0,
            (
                opening,
                Turn(
                    [1], [token], [math.log(float(probabilities[token]))], [],
                    reward=float(REWARDS[token]),
                ),
            ),
            0,
            batch_index=i,
        )
        for i, token in enumerate(tokens)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("algorithm", "section"),
    [
        ("reinforce", {"kl_in": "reward"}),
        ("reinforce", {"kl_estimator": "k2"}),
        ("reinforce", {"kl_estimator": "k1", "kl_correction": True}),
        ("rloo", {"samples": COPIES, "kl_in": "reward"}),
        ("grpo", {"samples": COPIES, "divide_by_std": False, "kl_estimator": "k2"}),
        ("ppo", {"kl_in": "reward", "whiten": False, "clip": 10.0, "critic_learning_rate": 1e-9}),
    ],
    ids=str,
)
def test_the_policy_comes_to_the_reference_times_the_exponential_of_the_reward(
    algorithm: str, section: dict[str, Any]
) -> None:
    reference, module = TinyModel(2), TinyModel(2)
    section = {"kl": BETA, "epochs": 1, "minibatches": 1} | section
    stage = mrl(
        episodes=COPIES,
        algorithm=algorithm,
        optimizer={"learning_rate": 2.0, "max_grad_norm": 9.0},
        **{algorithm: section},
    )
    update = tiny_update(stage, module, reference)
    weights = distribution(reference) * (REWARDS / BETA).exp()
    best = weights / weights.sum()
    assert float((distribution(module) - best).abs().max()) > 0.1
    places = list(range(COPIES))
    for _ in range(40):
        made = enumerated(distribution(module))
        update.run(update.evaluate(made, places), places, COPIES, 0)
    # Counts are whole numbers: a token's share is off by up to half of one.
    torch.testing.assert_close(distribution(module), best, rtol=0, atol=0.02)
