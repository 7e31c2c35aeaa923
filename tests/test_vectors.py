"""Advantages, losses and KL against numbers from an independent source (tests/vectors), and against
cases worked by hand."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.rl.advantages import (
    Reduce,
    doubted,
    explained_variance,
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
    memory_change_penalty,
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

ESTIMATORS: tuple[Estimator, ...] = ("k2", "k3")
JUNK = [math.nan, math.inf, -math.inf, 1e30]


def double(values: Any, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64), double(expected), rtol=0, atol=tolerance
    )


# --- against the vectors --------------------------------------------------------------------------


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


# --- worked by hand, everywhere -------------------------------------------------------------------


def test_advantages_of_two_turns_by_hand() -> None:
    # Last: 1 + 0.5 * 4 - 2 = 1. First: 0 + 0.5 * 2 - 1 + 0.5 * 0.5 * 1 = 0.25.
    advantages, returns = generalized_advantages(
        double([0.0, 1.0]), double([1.0, 2.0]), 4.0, 0.5, 0.5
    )
    assert_close(advantages, [0.25, 1.0])
    assert_close(returns, [1.25, 3.0])


def test_a_turn_left_out_in_the_middle_is_as_if_it_had_not_happened() -> None:
    rewards, values = double([0.3, math.nan, 1.0]), double([0.5, 9.0, 0.25])
    with_gap, _ = generalized_advantages(rewards, values, 0.0, 0.9, 0.95, torch.tensor([1, 0, 1]))
    without, _ = generalized_advantages(rewards[[0, 2]], values[[0, 2]], 0.0, 0.9, 0.95)
    assert_close(with_gap[[0, 2]], without.tolist())
    assert with_gap[1] == 0


def test_cut_episodes_bootstrap_each_with_its_own_value() -> None:
    rewards, values = double([[0.0, 1.0], [0.0, 1.0]]), double([[0.5, 0.5], [0.5, 0.5]])
    advantages, _ = generalized_advantages(rewards, values, double([0.0, 2.0]), 1.0, 1.0)
    assert_close(advantages, [[0.5, 0.5], [2.5, 2.5]])


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(), turns=st.integers(1, 5), padding=st.integers(0, 4), junk=st.sampled_from(JUNK)
)
def test_padding_changes_no_advantage_no_whitening_and_no_loss(
    data: st.DataObject, turns: int, padding: int, junk: float
) -> None:
    number = st.floats(-3, 3)
    old_log_probs, log_probs, rewards, values, returns = (
        double(data.draw(st.lists(number, min_size=turns, max_size=turns))).unsqueeze(0)
        for _ in range(5)
    )

    def padded(x: Tensor) -> Tensor:
        return torch.cat([x, torch.full((1, padding), junk, dtype=x.dtype)], -1)

    mask = torch.cat([torch.ones(1, turns), torch.zeros(1, padding)], -1).bool()
    whole = torch.ones(1, turns, dtype=torch.bool)

    bare, _ = generalized_advantages(rewards, values, 0.5, 0.9, 0.95)
    advantages, _ = generalized_advantages(padded(rewards), padded(values), 0.5, 0.9, 0.95, mask)
    assert torch.equal(advantages[:, :turns], bare)
    assert not advantages[:, turns:].any()
    assert_close(whiten(padded(rewards), mask)[:, :turns], whiten(rewards).tolist())

    outcomes = []
    for pad, keep in ((lambda x: x, whole), (padded, mask)):
        moving, critic = (pad(x).clone().requires_grad_() for x in (log_probs, values))
        loss = (
            policy_loss(moving, pad(old_log_probs), pad(rewards), keep, 0.2).loss
            + value_loss(critic, pad(values + 0.1), pad(returns), keep, 0.2).loss
        )
        loss.backward()
        assert moving.grad is not None
        assert critic.grad is not None
        outcomes.append((loss.detach(), moving.grad[:, :turns], critic.grad[:, :turns]))
        assert not moving.grad[:, turns:].any()
    for bare_outcome, padded_outcome in zip(*outcomes, strict=True):
        assert_close(padded_outcome, bare_outcome.tolist())


@settings(deadline=None, max_examples=60)
@given(
    shards=st.lists(st.lists(st.floats(-100, 100), max_size=6), min_size=1, max_size=4),
    ddof=st.integers(0, 1),
    shift=st.booleans(),
)
def test_whitening_of_any_split_is_that_of_the_whole(
    shards: list[list[float]], ddof: int, shift: bool
) -> None:
    ranks = [double(shard) for shard in shards]
    split = on_ranks(lambda x, reduce: whiten(x, ddof=ddof, shift_mean=shift, reduce=reduce), ranks)
    assert_close(
        torch.cat(split), whiten(torch.cat(ranks), ddof=ddof, shift_mean=shift).tolist(), 1e-7
    )


def test_policy_gradient_of_two_uneven_ranks_is_that_of_one() -> None:
    torch.manual_seed(0)
    log_probs, old, advantages = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])

    def gradient(rows: slice, tokens: int) -> Tensor:
        moving = log_probs[rows].clone().requires_grad_()
        (policy_loss(moving, old[rows], advantages[rows], mask[rows], 0.2).loss / tokens).backward()
        assert moving.grad is not None
        return moving.grad

    whole = gradient(slice(0, 3), 7)
    assert_close(torch.cat([gradient(slice(0, 1), 7), gradient(slice(1, 3), 7)]), whole.tolist())


def test_first_update_has_ratio_one_and_the_policy_gradient_of_reinforce() -> None:
    log_probs = double([[-1.0, -2.0]], grad=True)
    loss = policy_loss(log_probs, log_probs.detach(), double([[3.0]]), torch.ones(1, 2), 0.2)
    loss.loss.backward()
    assert_close(log_probs.grad, [[-3.0, -3.0]])
    assert loss.clipped == 0
    moved = policy_distance(log_probs, log_probs.detach(), torch.ones(1, 2))
    assert moved.max_ratio_deviation == 0
    assert moved.approx_kl == 0


def test_one_broken_token_cannot_make_the_gradient_nan() -> None:
    log_probs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    policy_loss(
        log_probs, torch.tensor([[-1.0, -2000.0]]), torch.tensor([[1.0]]), torch.ones(1, 2), 0.2
    ).loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.isfinite().all()


def test_whitening_two_values_by_hand_and_one_alone_to_zero() -> None:
    assert_close(whiten(double([1.0, 3.0]), eps=0.0), [-(0.5**0.5), 0.5**0.5])
    assert_close(whiten(double([1.0, 3.0]), ddof=0, eps=0.0, shift_mean=False), [1.0, 3.0])
    assert_close(whiten(double([5.0])), [0.0])


def test_explained_variance_by_hand() -> None:
    returns = double([1.0, 3.0, 99.0])
    mask = torch.tensor([1, 1, 0])
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(double([2.0, 2.0, 0.0]), returns, mask) == pytest.approx(0.0)
    assert explained_variance(double([1.0, 2.0]), double([1.0, 1.0])) is None


def test_entropy_allows_tokens_ruled_out_and_has_a_finite_gradient() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    entropy = token_entropy(logits)
    assert entropy.item() == pytest.approx(math.log(2), abs=1e-6)
    entropy.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_log_probs_of_bfloat16_logits_are_computed_in_float32() -> None:
    logits = torch.tensor([[8.0, 7.0, 6.0]], dtype=torch.bfloat16)
    exact = logits.float().log_softmax(-1)[0, 1].item()
    assert token_log_probs(logits, torch.tensor([1])).item() == pytest.approx(exact, abs=1e-6)


def test_greedy_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature above 0"):
        token_log_probs(torch.zeros(1, 2), torch.tensor([0]), 0.0)


def test_memory_change_grows_with_the_root_of_the_turn_and_skips_masked_writes() -> None:
    before = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    after = torch.full_like(before, 2.0)
    after[2] = math.nan
    penalty = memory_change_penalty(before, after, torch.tensor([0, 3, 8]), torch.tensor([1, 1, 0]))
    assert_close(penalty, 4.0 * 1 + 4.0 * 2)


def test_adaptive_kl_without_target_stays_and_resumes_from_its_coefficient() -> None:
    fixed = AdaptiveKL(0.02, None)
    assert fixed.update(50.0, 64) == 0.02
    moved = AdaptiveKL(0.2, 6.0, 10_000)
    moved.update(0.0, 256)
    resumed = AdaptiveKL(moved.coefficient, 6.0, 10_000)
    assert resumed.update(12.0, 256) == moved.update(12.0, 256)
    with pytest.raises(ValueError, match="nan"):
        moved.update(math.nan, 1)


def on_ranks(function: Callable[[Tensor, Reduce], Tensor], ranks: list[Tensor]) -> list[Tensor]:
    """function(x, reduce) of every rank at once, one thread each, with a `reduce` that really waits
    for all of them."""
    barrier, parts = threading.Barrier(len(ranks), timeout=30), list(ranks)

    def one(rank: int) -> Tensor:
        def reduce(tensor: Tensor) -> Tensor:
            parts[rank] = tensor
            barrier.wait()
            total = torch.stack(parts).sum(0)
            barrier.wait()
            return total

        return function(ranks[rank], reduce)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(one, range(len(ranks))))
