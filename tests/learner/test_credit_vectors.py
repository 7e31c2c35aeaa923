"""Comparison of answers, KL in rewards, baselines and choice against numbers from an independent
source (tests/vectors)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config.algorithms import GRPO, PPO, RLOO, Reinforce
from common.episode import Episode, Turn
from learner.parallel.group import OneRank
from learner.policies.protocol import TokenBatch
from learner.rl.advantages import generalized_advantages
from learner.rl.algorithms.grpo import GroupRelative
from learner.rl.algorithms.ppo import ProximalPolicyOptimization
from learner.rl.algorithms.reinforce import MovingBaseline
from learner.rl.algorithms.rejection import best_of, kept_number
from learner.rl.algorithms.rloo import LeaveOneOut
from learner.rl.experience import Experience, TokenCredit
from learner.rl.kl import kl_estimate
from learner.rl.rewards import sampled_kl, token_kl_rewards


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def experience(rewards: list[float]) -> Experience:
    table = double(rewards)[:, None]
    scored, nothing = torch.ones_like(table, dtype=torch.bool), torch.zeros_like(table)
    turns = (Turn([1], [2], [], []), Turn([1], [2], [-0.5], []))
    episodes = [Episode(str(i), str(i), 0, turns, 0) for i in range(len(rewards))]
    return Experience(episodes, scored, scored, table, nothing, nothing, nothing[:, 0], [])


def credited(algorithm: Any, rewards: list[float]) -> list[float]:
    places = list(range(len(rewards)))
    found = algorithm.credit(experience(rewards), places, OneRank())
    return [float(advantage) for advantage in found.advantages[:, 0]]


def acted(
    new: list[Tensor], old: list[Tensor], advantages: list[float] | list[Tensor]
) -> tuple[TokenBatch, Experience]:
    """One answer in each episode, with its log-probs now and while it was sampled, and an advantage
    of its own or one for each token."""
    number, longest = len(new), max(map(len, new))
    lived = experience([0.0] * number)
    turns = [(Turn([1], [2], [], []), Turn([1], [2] * len(own), own.tolist(), [])) for own in old]
    episodes = [replace(one, turns=each) for one, each in zip(lived.episodes, turns, strict=True)]
    each = [[own] for own in old]
    lived = replace(lived, episodes=episodes, reference=each, recomputed=each)
    if isinstance(advantages[0], Tensor):
        table = torch.zeros(number, 1, longest, dtype=torch.float64)
        present = torch.zeros_like(table, dtype=torch.bool)
        for row, values in enumerate(advantages):
            assert isinstance(values, Tensor)
            table[row, 0, : len(values)], present[row, 0, : len(values)] = values, True
        nothing = torch.zeros_like(table)
        lived = replace(lived, tokens=TokenCredit(present, nothing, nothing, table, nothing))
    else:
        lived = replace(lived, advantages=double(advantages)[:, None])
    flat = torch.cat(new).detach().requires_grad_()
    lengths = torch.tensor([len(own) for own in new])
    places = [(i, 0) for i in range(number)]
    return TokenBatch(flat, torch.zeros_like(flat), places, lengths), lived


def loss_and_gradient(algorithm: Any, batch: TokenBatch, lived: Experience) -> tuple[float, Tensor]:
    """Of an algorithm's policy loss alone, by the log-probs."""
    term = next(term for term in algorithm.terms(batch, lived, 0.0) if "loss_policy" in term.name)
    loss = term.sum / term.count
    (gradient,) = torch.autograd.grad(loss, batch.log_probs)
    return float(loss.detach()), gradient


@pytest.mark.parametrize("case", ["k4", "k2"])
def test_leave_one_out_agrees_with_vectors(vectors: dict[str, Any], case: str) -> None:
    rewards = vectors["rloo"][case]["inputs"]["rewards"]
    flat = [each for row in rewards for each in row]
    found = credited(LeaveOneOut(RLOO(samples=len(rewards[0]))), flat)
    expected = [each for row in vectors["rloo"][case]["outputs"]["advantages"] for each in row]
    assert found == pytest.approx(expected, abs=1e-9)


def test_answers_of_a_task_stand_side_by_side_in_a_batch(vectors: dict[str, Any]) -> None:
    """The vector's layout has all first samples before all second ones."""
    case = vectors["rloo"]["layout_sample_major"]
    flat, samples = case["inputs"]["flat_rewards"], case["inputs"]["k"]
    tasks = len(flat) // samples
    side_by_side = [flat[s * tasks + task] for task in range(tasks) for s in range(samples)]
    found = credited(LeaveOneOut(RLOO(samples=samples)), side_by_side)
    expected = case["outputs"]["advantages_flat"]
    assert found == pytest.approx(
        [expected[s * tasks + task] for task in range(tasks) for s in range(samples)],
        abs=1e-9,
        rel=0,
    )


def test_group_relative_advantages_agree_with_vectors(vectors: dict[str, Any]) -> None:
    case = vectors["rloo"]["grpo_for_comparison"]
    flat = [each for row in case["inputs"]["rewards"] for each in row]
    expected = [each for row in case["outputs"]["advantages"] for each in row]
    assert credited(GroupRelative(GRPO(samples=4)), flat) == pytest.approx(expected, abs=1e-9)


def test_rewards_less_kl_agree_with_vectors(vectors: dict[str, Any]) -> None:
    for case in vectors["kl_reward"].values():
        given, expected = case["inputs"], case["outputs"]
        found = token_kl_rewards(
            double(given["logprobs"]), double(given["ref_logprobs"]), given["beta"]
        )
        torch.testing.assert_close(found, double(expected["non_score_reward"]), rtol=0, atol=1e-9)
        total = given["score"] + float(found.sum())
        assert total == pytest.approx(expected["total"], abs=1e-9, rel=0)
    case = vectors["rloo"]["sequence_kl_in_reward"]
    given = case["inputs"]
    turns = [
        (Turn([1], [2], [], []), Turn([1], [2, 3], log_probs, []))
        for log_probs in given["logprobs"]
    ]
    lived = Experience(
        [Episode(str(i), str(i), 0, each, 0) for i, each in enumerate(turns)],
        *[torch.ones(2, 1, dtype=torch.bool)] * 2,
        double(given["scores"])[:, None],
        *[torch.zeros(2, 1)] * 2,
        torch.zeros(2),
        [[double(each)] for each in given["ref_logprobs"]],
    )
    rewards = lived.rewards - given["beta"] * sampled_kl(lived)
    torch.testing.assert_close(rewards[:, 0], double(case["outputs"]["reward"]), rtol=0, atol=1e-9)
    found = credited(LeaveOneOut(RLOO(samples=2)), rewards[:, 0].tolist())
    assert found == pytest.approx(case["outputs"]["advantages"], abs=1e-9, rel=0)
    # On the policy that sampled, the loss has the gradient of -A · log π, answer by answer.
    own = [double(each) for each in given["logprobs"]]
    batch, credit = acted(own, own, found)
    loss, gradient = loss_and_gradient(LeaveOneOut(RLOO(samples=2)), batch, credit)
    assert loss == pytest.approx(-sum(found) / 2, abs=1e-9, rel=0)
    expected = double([-each / 2 for each in found for _ in range(2)])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9)


def test_kl_with_importance_weights_agrees_with_vectors(vectors: dict[str, Any]) -> None:
    case = vectors["kl_estimators"]["importance_weighted_loss_tokens"]
    given, expected = case["inputs"], case["outputs"]
    log_probs = double(given["logprob"]).requires_grad_()
    found = kl_estimate(log_probs, double(given["ref_logprob"]), "k1", double(given["old_logprob"]))
    torch.testing.assert_close(found.detach(), double(expected["kl_tokens"]))
    found.mean().backward()
    torch.testing.assert_close(log_probs.grad, double(expected["d_loss_d_logprob"]))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_of_older_samples_has_the_exact_gradient(
    vectors: dict[str, Any], estimator: Any
) -> None:
    case = vectors["kl_estimators"]["gradient_on_current_policy"]
    old, reference = double(case["inputs"]["old_policy"]), double(case["inputs"]["reference"])
    logits = double(case["inputs"]["logits"]).requires_grad_()
    estimate = kl_estimate(logits.log_softmax(-1), reference.log(), estimator, old.log())
    (old * estimate).sum().backward()
    name = "reverse_direction_grad_KL_ref_policy" if estimator == "k3" else "exact_grad"
    # Vectors hold central differences, good to 1e-10.
    torch.testing.assert_close(logits.grad, double(case["outputs"][name]), rtol=0, atol=1e-9)


def test_moving_baselines_agree_with_vectors(vectors: dict[str, Any]) -> None:
    case = vectors["reinforce"]["running_mean_baseline"]
    for baseline in ("including", "excluding"):
        algorithm = MovingBaseline(Reinforce(baseline=baseline))
        advantages = [credited(algorithm, [reward])[0] for reward in case["inputs"]["rewards"]]
        expected = case["outputs"][f"advantage_{baseline}_current"]
        assert advantages == pytest.approx(expected, abs=1e-9)
    algorithm = MovingBaseline(Reinforce(baseline="including", baseline_decay=0.9))
    for reward, average in zip(
        case["inputs"]["rewards"], case["outputs"]["ema0.9_including_current"], strict=True
    ):
        (advantage,) = credited(algorithm, [reward])
        assert advantage == pytest.approx(reward - average, abs=1e-9, rel=0)


def test_the_loss_of_reinforce_agrees_with_vectors(vectors: dict[str, Any]) -> None:
    """A mean over answers of the sum over the tokens of each."""
    case = vectors["reinforce"]["loss"]
    given = case["inputs"]
    tokens = [double([0.25 * total, 0.75 * total]) for total in given["sequence_logprobs"]]
    batch, lived = acted(tokens, tokens, given["advantages"])
    algorithm = MovingBaseline(Reinforce(loss_mean="answer_sums"))
    loss, gradient = loss_and_gradient(algorithm, batch, lived)
    assert loss == pytest.approx(case["outputs"]["loss"], abs=1e-9, rel=0)
    expected = double([-each / 4 for each in given["advantages"] for _ in range(2)])
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9)


def test_ppo_by_means_of_answers_agrees_with_vectors(vectors: dict[str, Any]) -> None:
    """The gradient is that of the mean over all tokens, which the vectors hold, weighed anew."""
    cases = vectors["ppo_loss"]
    given = cases["masked_mean_vf0.1"]["inputs"]
    lengths = [sum(row) for row in given["mask"]]

    def rows(name: str) -> list[Tensor]:
        return [double(row[:size]) for row, size in zip(given[name], lengths, strict=True)]

    batch, lived = acted(rows("logprob"), rows("old_logprob"), rows("advantages"))
    algorithm = ProximalPolicyOptimization(
        PPO(credit="token", loss_mean="answer_means", clip=given["cliprange"])
    )
    loss, gradient = loss_and_gradient(algorithm, batch, lived)
    expected = cases["sequence_mean_then_batch_mean"]["outputs"]["pg_loss"]
    assert loss == pytest.approx(expected, abs=1e-9, rel=0)
    by_tokens = cases["gradients"]["outputs"]["d_pg_d_logprob"]
    weighed = [
        sum(lengths) * each / (len(lengths) * size)
        for row, size in zip(by_tokens, lengths, strict=True)
        for each in row[:size]
    ]
    torch.testing.assert_close(gradient, double(weighed), rtol=0, atol=1e-9)


def test_what_is_kept_agrees_with_vectors(vectors: dict[str, Any]) -> None:
    case = vectors["rejection"]["keep"]
    given, expected = case["inputs"], case["outputs"]
    scores = double(given["scores"])
    number = kept_number(len(scores), given["top_n"], 0.5)
    assert best_of(scores, number).tolist() == expected["top_n_idx"]
    number = kept_number(len(scores), None, given["top_frac"])
    assert best_of(scores, number).tolist() == expected["top_frac_idx"]
    assert kept_number(100, None, 0.29) == 29
    assert kept_number(1, None, 0.1) == 1
    assert kept_number(2, 5, 0.1) == 2


def test_one_advantage_per_answer_is_that_of_its_first_value(vectors: dict[str, Any]) -> None:
    """A critic of queries is the value of an answer's first token; with λ = 0 the next query's
    value, discounted, is all that lies beyond an answer."""
    case = vectors["cross_step"]["actionFirst"]
    given, expected = case["inputs"], case["outputs"]["per_action"]
    advantages, returns = generalized_advantages(
        double([sum(each["r"]) for each in given["actions"]]),
        double([each["v"][0] for each in given["actions"]]),
        0.0,
        given["gamma_game"],
        0.0,
    )
    assert advantages.tolist() == pytest.approx([each["advantage"] for each in expected], abs=1e-9)
    assert returns.tolist() == pytest.approx([each["return"] for each in expected], abs=1e-9)
    case = vectors["cross_step"]["discounted_action_returns"]
    rewards, gamma = case["inputs"]["rewards"], case["inputs"]["gamma_game"]
    _, first = generalized_advantages(double(rewards[:2]), double([0.0] * 2), 0.0, gamma, 1.0)
    _, second = generalized_advantages(double(rewards[2:]), double([0.0] * 3), 0.0, gamma, 1.0)
    assert [*first.tolist(), *second.tolist()] == pytest.approx(case["outputs"]["returns"])
