"""Advantages, whitening, losses and KL worked by hand, and what must hold of any numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.rl.advantages import (
    explained_variance,
    generalized_advantages,
    whiten,
)
from learner.rl.kl import AdaptiveKL
from learner.rl.losses import (
    memory_change_penalty,
    policy_distance,
    policy_loss,
    token_entropy,
    token_log_probs,
    value_loss,
)
from tests.numbers_in_double import assert_close, double, on_ranks

JUNK = [math.nan, math.inf, -math.inf, 1e30]


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
