"""Filters against brute force, and draws against probabilities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.rollout import Sampling
from common.seeding import uniforms
from rollout.policies.sampling import filtered, inverse_cdf, sample


def brute_force(logits: list[float], sampling: Sampling) -> list[float]:
    """The distribution one token at a time, in plain Python."""
    weights = [
        math.exp(value / sampling.temperature - max(logits) / sampling.temperature)
        for value in logits
    ]
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    if sampling.top_k:
        order = order[: sampling.top_k]
    total = sum(weights[i] for i in order)
    kept, reached = [], 0.0
    for i in order:
        if kept and reached >= sampling.top_p:
            break
        kept.append(i)
        reached += weights[i] / total
    kept = [i for i in kept if weights[i] >= sampling.min_p * weights[order[0]]]
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(weights))]


SETTINGS = list(
    itertools.product((0.5, 1.0, 1.7), (0, 1, 7, 500), (1.0, 0.83, 0.2, 1e-6), (0.0, 0.07))
)


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), SETTINGS)
def test_filters_equal_brute_force(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = (
        torch.randn((4, 90), generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2
    )
    expected = torch.tensor(
        [brute_force(row, sampling) for row in logits.tolist()], dtype=torch.float64
    )
    torch.testing.assert_close(filtered(logits, sampling).softmax(-1), expected)


def test_ties_go_to_the_lower_token() -> None:
    kept = filtered(torch.zeros(1, 100), Sampling(top_k=3)).softmax(-1)
    assert kept[0].nonzero().flatten().tolist() == [0, 1, 2]


def test_filters_leave_their_input_alone() -> None:
    logits = torch.randn(2, 50)
    before = logits.clone()
    sample(
        logits,
        torch.rand(2, dtype=torch.float64),
        Sampling(top_k=2, top_p=0.5, min_p=0.1, temperature=0.3),
    )
    assert torch.equal(logits, before)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 0.95, 0.999]))
def test_a_token_of_zero_weight_is_never_drawn(vocabulary: int, seed: int, sparsity: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand((8, vocabulary), generator=generator) * (
        torch.rand((8, vocabulary), generator=generator) >= sparsity
    )
    weights[:, seed % vocabulary] = 1e-30
    numbers = torch.rand(8, generator=generator, dtype=torch.float64)
    numbers[0], numbers[1] = 0.0, 1 - 2.0**-53
    tokens = inverse_cdf(weights, numbers)
    assert (weights.gather(1, tokens[:, None]) > 0).all()


def test_draws_invert_the_running_sum() -> None:
    weights = torch.rand(
        (500, 200), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    numbers = torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ends = weights.cumsum(-1)
    expected = (ends <= numbers[:, None] * ends[:, -1:]).sum(-1)
    assert torch.equal(inverse_cdf(weights, numbers), expected)


def test_a_row_that_is_not_finite_shows_and_disturbs_no_other() -> None:
    logits = torch.randn((4, 100), generator=torch.Generator().manual_seed(3))
    numbers = torch.rand(4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, log_probs, _ = sample(logits, numbers, Sampling())
    for bad in (torch.nan, torch.inf):
        broken = logits.clone()
        broken[1, 70] = bad
        others, found, _ = sample(broken, numbers, Sampling())
        assert not found[1].isfinite()
        assert 0 <= others[1] < 100
        keep = torch.tensor([0, 2, 3])
        assert torch.equal(others[keep], tokens[keep])
        assert torch.equal(found[keep], log_probs[keep])


@pytest.mark.parametrize("vocabulary", [5, 64, 333])
def test_a_row_is_drawn_alike_in_any_company_bit_for_bit(vocabulary: int) -> None:
    logits = 3 * torch.randn((70, vocabulary), generator=torch.Generator().manual_seed(3))
    numbers = torch.rand(70, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sampling in (Sampling(), Sampling(temperature=0.7, top_k=40, top_p=0.9, min_p=0.01)):
        drawn = sample(logits, numbers, sampling)
        for rows in ([5], [69, 5, 6], list(range(5, 40))):
            for found, whole in zip(
                sample(logits[rows], numbers[rows], sampling), drawn, strict=True
            ):
                assert found is whole is None or torch.equal(found, whole[rows])


def test_drawn_tokens_follow_their_probabilities() -> None:
    draws = 40_000
    sampling = Sampling(temperature=0.9, top_p=0.97)
    logits = torch.randn((1, 30), generator=torch.Generator().manual_seed(5))
    numbers = torch.from_numpy(uniforms(np.full(draws, 12345), np.arange(draws)))
    tokens, log_probs, _ = sample(logits.expand(draws, -1), numbers, sampling)
    probabilities = filtered(logits, sampling).softmax(-1)[0]
    counts = torch.bincount(tokens, minlength=30)
    likely = probabilities > 0
    assert counts[~likely].sum() == 0
    chi_square = float(
        ((counts - draws * probabilities)[likely] ** 2 / (draws * probabilities[likely])).sum()
    )
    degrees = int(likely.sum()) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)
    torch.testing.assert_close(log_probs, probabilities.log()[tokens])


def test_greedy_rows_say_their_log_prob_under_the_plain_distribution() -> None:
    logits = torch.randn((6, 40), generator=torch.Generator().manual_seed(2))
    greedy = torch.tensor([True, False] * 3)
    low, high = torch.full((2, 6), 0.001, dtype=torch.float64) + torch.tensor([[0.0], [0.998]])
    tokens, log_probs, _ = sample(logits, low, Sampling(temperature=5, top_k=2), greedy)
    others = sample(logits, high, Sampling(temperature=5, top_k=2), greedy)
    assert torch.equal(tokens[greedy], logits.argmax(-1)[greedy])
    torch.testing.assert_close(log_probs[greedy], logits.log_softmax(-1).amax(-1)[greedy])
    assert torch.equal(tokens != others.tokens, ~greedy)
