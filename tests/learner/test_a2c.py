"""A2C: its direction, and that its first step is the one of PPO, whose ratio is 1 there."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.learner.test_bandit import GOOD, OPENING, Bandit


@pytest.mark.parametrize(("sign", "least", "most"), [(1.0, 0.9, 1.0), (-1.0, 0.0, 0.05)])
def test_a_rewarded_answer_becomes_more_probable_and_a_punished_one_less(
    sign: float, least: float, most: float
) -> None:
    bandit = Bandit("a2c")
    bandit.learn(lambda answer: sign * float(answer == GOOD))
    assert least <= bandit.good <= most


def test_the_critic_learns_what_to_expect() -> None:
    bandit = Bandit("a2c")
    bandit.learn(lambda answer: 0.7)
    lived = bandit.learner.credit(bandit.play(0, lambda answer: 0.7, OPENING))
    torch.testing.assert_close(
        lived.values[lived.scored], torch.full((24,), 0.7), atol=0.1, rtol=0.0
    )


def test_gradients_of_the_first_step_are_those_of_ppo() -> None:
    found = {}
    for algorithm in ("ppo", "a2c"):
        bandit = Bandit(algorithm, epochs=1)
        lived = bandit.learner.credit(bandit.play(0, lambda answer: answer / 10, OPENING))
        parts = bandit.learner.parts
        for terms, module in (
            (parts.policy_terms(lived), bandit.learner.policy),
            (parts.critic_terms(lived), parts.critic.module),
        ):
            loss = sum(term.coefficient * term.sum / max(term.count, 1.0) for term in terms)
            loss.backward()
            found[algorithm, type(module).__name__] = {
                name: parameter.grad.clone()
                for name, parameter in module.named_parameters()
                if parameter.grad is not None
            }
    for name in ("ReactiveTransformer", "Critic"):
        ppo, a2c = found["ppo", name], found["a2c", name]
        assert any(gradient.abs().max() > 1e-4 for gradient in ppo.values())
        assert ppo.keys() == a2c.keys()
        for parameter, gradient in ppo.items():
            torch.testing.assert_close(a2c[parameter], gradient, atol=1e-6, rtol=1e-4)


def test_answers_without_a_score_count_for_nothing() -> None:
    bandit = Bandit("a2c")
    lived = bandit.learner.credit(bandit.play(0, lambda answer: answer / 10, OPENING))
    unscored = dataclasses.replace(lived, scored=torch.zeros_like(lived.scored))
    terms = {term.name: term for term in bandit.learner.parts.policy_terms(unscored)}
    assert (float(terms["a2c/loss_policy"].sum.detach()), terms["a2c/loss_policy"].count) == (
        0.0,
        0.0,
    )
