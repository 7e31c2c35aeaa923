"""Advantages, losses and KL against numbers from an independent source (tests/vectors), and against
cases worked by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learner.rl.advantages import (
    doubted,
    generalized_advantages,
    mean_and_variance,
    whiten,
)
from learner.rl.kl import (
    AdaptiveKL,
    Estimator,
    kl_estimate,
)
from learner.rl.losses import (
    policy_distance,
    policy_loss,
    token_entropy,
    token_log_probs,
    value_loss,
)
from learner.rl.preference_losses import (
    bradley_terry_loss,
    centering_penalty,
    choice_loss,
    discrete_loss,
    ranking_loss,
    win_probability,
)
from reward_service.reward_models.model import expected_and_std
from tests.numbers_in_double import assert_close, double, on_ranks

ESTIMATORS: tuple[Estimator, ...] = ("k2", "k3")


def test_advantages_agree_with_vectors(vectors: dict[str, Any]) -> None:
    for case in vectors["gae"].values():
        given_ = case["inputs"]
        mask = torch.tensor(given_["mask"]) if "mask" in given_ else None
        advantages, returns = generalized_advantages(
            double(given_["rewards"]),
            double(given_["values"]),
            given_["last_value"],
            given_["gamma"],
            given_["lam"],
            mask,
        )
        assert_close(advantages, case["outputs"]["advantages"])
        expected = double(case["outputs"]["returns"])
        assert_close(returns, (expected if mask is None else expected * mask).tolist())


def test_whitening_agrees_with_vectors(vectors: dict[str, Any]) -> None:
    for name, case in vectors["whiten"].items():
        if name == "global_two_ranks":
            continue
        given_ = case["inputs"]
        mask = torch.tensor(given_["mask"]) if "mask" in given_ else None
        x = double(given_["x"])
        assert_close(
            whiten(x, mask, given_["ddof"], given_["eps"], given_["shift_mean"]),
            case["outputs"]["whitened"],
        )
        _, mean, variance = mean_and_variance(x, mask, given_["ddof"])
        assert_close(mean, case["outputs"]["mean"])
        assert_close(variance, case["outputs"]["var"])


def test_rewards_by_comparison_agree_with_vectors(vectors: dict[str, Any]) -> None:
    cases = vectors["bradley_terry"]
    for name in ("plain", "centered0.01", "margin_centered0.01"):
        given_, expected = cases[name]["inputs"], cases[name]["outputs"]
        chosen, rejected = (
            double(given_["chosen"], grad=True),
            double(given_["rejected"], grad=True),
        )
        pair_loss = bradley_terry_loss(chosen, rejected, double(given_["margin"])).mean()
        penalty = given_["center_rewards_coefficient"] * centering_penalty(chosen, rejected).mean()
        assert_close(pair_loss, expected["pair_loss"])
        assert_close(penalty, expected["center_penalty"])
        (pair_loss + penalty).backward()
        assert_close(pair_loss + penalty, expected["loss"])
        assert_close(chosen.grad, expected["d_chosen"])
        assert_close(rejected.grad, expected["d_rejected"])
    ranking, best = cases["ranking_K4"], cases["best_of_4"]
    assert_close(
        ranking_loss(double(ranking["inputs"]["rewards_best_to_worst"])), ranking["outputs"]["loss"]
    )
    assert_close(
        choice_loss(double(best["inputs"]["rewards"]), best["inputs"]["best"]),
        best["outputs"]["loss"],
    )


def test_discrete_rewards_agree_with_vectors_and_their_gradients_with_differences(
    vectors: dict[str, Any],
) -> None:
    for name, case in vectors["probabilistic_rm"].items():
        given_, expected = case["inputs"], case["outputs"]
        if name == "advantage_with_std":
            apart = double([given_["reward"] - given_["baseline"]] * len(given_["std"]))
            assert_close(doubted(apart, double(given_["std"])), expected["advantage"])
            continue
        better, worse = (
            double([given_["logits_w"]], grad=True),
            double([given_["logits_l"]], grad=True),
        )
        assert_close(win_probability(better, worse)[0], expected["p_w_beats_l"])
        assert_close(win_probability(worse, better)[0], expected["p_l_beats_w"])
        assert_close(discrete_loss(better, worse)[0], expected["loss"])
        (reward, other), (std, _) = expected_and_std(torch.cat([better, worse]).detach())
        assert_close(reward, expected["expected_w"])
        assert_close(other, expected["expected_l"])
        assert_close(std, expected["std_w"])
        assert_close(1 / (1 + std), expected["f_sigma_w"])
        torch.autograd.gradcheck(discrete_loss, (better, worse), atol=1e-9)


def test_whitening_over_two_ranks_agrees_with_vectors(vectors: dict[str, Any]) -> None:
    case = vectors["whiten"]["global_two_ranks"]
    ranks = [double(case["inputs"]["rank0"]), double(case["inputs"]["rank1"])]
    for rank, whitened in enumerate(
        on_ranks(lambda x, reduce: whiten(x, eps=case["inputs"]["eps"], reduce=reduce), ranks)
    ):
        assert_close(whitened, case["outputs"][f"rank{rank}"])


def test_log_probs_and_entropy_agree_with_vectors(vectors: dict[str, Any]) -> None:
    for case in vectors["logprob"].values():
        given_ = case["inputs"]
        logits = double(given_["logits"])
        assert_close(
            token_log_probs(logits, torch.tensor(given_["labels"]), given_["temperature"]),
            case["outputs"]["logprob"],
        )
        assert_close(token_entropy(logits, given_["temperature"]), case["outputs"]["entropy"])


def test_ppo_losses_and_gradients_agree_with_vectors(vectors: dict[str, Any]) -> None:
    cases = vectors["ppo_loss"]
    for name in ("masked_mean_vf0.1", "masked_mean_vf0.5"):
        given_, out = cases[name]["inputs"], cases[name]["outputs"]
        mask = torch.tensor(given_["mask"])
        log_probs, values = double(given_["logprob"], grad=True), double(given_["vpred"], grad=True)
        policy = policy_loss(
            log_probs,
            double(given_["old_logprob"]),
            double(given_["advantages"]),
            mask,
            given_["cliprange"],
        )
        critic = value_loss(
            values,
            double(given_["old_values"]),
            double(given_["returns"]),
            mask,
            given_["cliprange_value"],
        )
        pg, vf = policy.loss / policy.tokens, critic.loss / critic.turns
        assert_close(pg.detach(), out["pg_loss"])
        assert_close(vf.detach(), out["vf_loss"])
        assert_close((pg + given_["vf_coef"] * vf).detach(), out["total"])
        assert_close(policy.clipped / policy.tokens.double(), out["pg_clipfrac"])
        assert_close(critic.clipped / critic.turns.double(), out["vf_clipfrac"])
        moved = policy_distance(log_probs, double(given_["old_logprob"]), mask)
        assert_close(moved.approx_kl / policy.tokens, out["approx_kl_half_sq"])
        assert_close(moved.approx_kl_k3 / policy.tokens, out["approx_kl_k3"])
        (pg + vf).backward()
        assert_close(log_probs.grad, cases["gradients"]["outputs"]["d_pg_d_logprob"])
        assert_close(values.grad, cases["gradients"]["outputs"]["d_vf_d_vpred"])


def test_kl_estimators_agree_with_vectors(vectors: dict[str, Any]) -> None:
    case = vectors["kl_estimators"]["categorical_forward"]
    policy, reference = double(case["inputs"]["policy"]), double(case["inputs"]["reference"])
    for estimator in ESTIMATORS:
        values = kl_estimate(policy.log(), reference.log(), estimator)
        assert_close(values, case["outputs"][estimator])
        assert_close((policy * values).sum(), case["outputs"][f"E_{estimator}"])
    case = vectors["kl_estimators"]["per_token"]
    for estimator in ESTIMATORS:
        values = kl_estimate(
            double(case["inputs"]["logprobs"]), double(case["inputs"]["ref_logprobs"]), estimator
        )
        assert_close(values, case["outputs"][estimator])


def test_kl_loss_gradients_agree_with_vectors(vectors: dict[str, Any]) -> None:
    case = vectors["kl_estimators"]["gradient_on_current_policy"]
    reference = double(case["inputs"]["reference"])

    def gradient(loss_of: Any) -> Tensor:
        logits = double(case["inputs"]["logits"], grad=True)
        loss_of(logits.log_softmax(-1)).backward()
        assert logits.grad is not None
        return logits.grad

    for estimator in ESTIMATORS:
        on_policy = gradient(
            lambda lp, e=estimator: (lp.exp().detach() * kl_estimate(lp, reference.log(), e)).sum()
        )
        # The vectors' own gradients are central differences: good to 1e-10 only.
        assert_close(on_policy, case["outputs"][f"on_policy_{estimator}_as_loss_grad"])


def test_adaptive_kl_agrees_with_vectors_in_both_forms(vectors: dict[str, Any]) -> None:
    for case in vectors["adaptive_kl"].values():
        given_ = case["inputs"]
        if "K" in given_:
            controller, episodes = AdaptiveKL(given_["init"], given_["target"], gain=given_["K"]), 1
        else:
            controller, episodes = (
                AdaptiveKL(given_["init"], given_["target"], given_["horizon"]),
                given_["n_steps"],
            )
        assert_close(
            [controller.update(kl, episodes) for kl in given_["kl_sequence"]],
            case["outputs"]["beta_after_each"],
        )
