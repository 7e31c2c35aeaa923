"""Advantages, returns and their statistics: what each turn of an episode was worth beyond what the
critic expected.

Pure functions of tensors. Two invariants: what stands in padding (NaN included) cannot change a
result, and a statistic over a batch that is split across ranks is the statistic of the whole batch.
For the second, functions that need a batch statistic take `reduce`, which sums a tensor over all
ranks; with one rank it is `one_rank`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sum of a tensor over all ranks, given to every rank. Must be called by all ranks, equally
often."""


SMALLEST_VARIANCE = 1e-12
"""Least variance of rewards that differ: less is rounding."""
SAME = 1e-6
"""Numbers that differ by no more than this share of them are the same: advantages and returns are
sums in float32."""


def one_rank(tensor: Tensor) -> Tensor:
    """The `Reduce` of a learner of one rank."""
    return tensor


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    bootstrap: Tensor | float,
    discount: float | Tensor,
    gae_lambda: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, latest turn first (Schulman et al. 2016, eq. 16); both 0 where the
    mask is.

    discount: of what comes after a turn, [..., turns] where turns differ in it.

    rewards, values, mask: [turns] for one episode or [..., turns] for a batch. bootstrap: a number
    or [...], the value after the last turn: 0 where the episode really ended, the critic's value
    where it was only cut short (a 0 there teaches the critic that being cut is bad). A masked turn
    is stepped over as if it had never happened, wherever it
    stands: padding at the end, or a turn in the middle that could not be scored.
    """
    present = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask.bool()
    rewards, values = torch.where(present, rewards, 0.0), torch.where(present, values, 0.0)
    next_value = torch.as_tensor(bootstrap, dtype=values.dtype, device=values.device).expand(
        values.shape[:-1]
    )
    running = torch.zeros_like(next_value)
    discounts = torch.as_tensor(discount, dtype=values.dtype, device=values.device)
    discounts = discounts.expand(values.shape)
    backwards: list[Tensor] = []
    for turn in reversed(range(rewards.shape[-1])):
        here = present[..., turn]
        after = discounts[..., turn]
        surprise = rewards[..., turn] + after * next_value - values[..., turn]
        running = torch.where(here, surprise + after * gae_lambda * running, running)
        next_value = torch.where(here, values[..., turn], next_value)
        backwards.append(torch.where(here, running, 0.0))
    advantages = torch.stack(backwards[::-1], dim=-1) if backwards else torch.zeros_like(rewards)
    return advantages, advantages + values


def token_advantages(
    rewards: Tensor,
    values: Tensor,
    bootstrap: Tensor,
    discounts: tuple[float | Tensor, float],
    gae_lambda: float,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of single tokens; both 0 where the mask is.

    rewards, values, mask: [episodes, turns, tokens]. bootstrap: [episodes], as above. discounts:
    per turn, a number or [episodes, turns], and per token. Inside an answer they are generalised
    advantages. After its last token comes, discounted per turn, the value of the next answer's
    first token: what that answer earned beyond it is not waited for. A turn that could not be
    scored is stepped over.
    """
    per_turn, per_token = discounts
    each = torch.as_tensor(per_turn, dtype=values.dtype, device=values.device)
    each = each.expand(values.shape[:2])
    scored = mask[..., 0]
    nexts: list[Tensor] = []
    following = torch.as_tensor(bootstrap, dtype=values.dtype, device=values.device)
    for turn in reversed(range(values.shape[1])):
        nexts.append(each[:, turn] * following)
        following = torch.where(scored[:, turn], values[:, turn, 0], following)
    after = torch.stack(nexts[::-1], dim=1) if nexts else values.new_zeros(values.shape[:2])
    return generalized_advantages(rewards, values, after, per_token, gae_lambda, mask)


def answer_advantages(
    rewards: Tensor,
    values: Tensor,
    bootstrap: Tensor,
    discounts: tuple[float | Tensor, float],
    gae_lambda: float,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same arguments, with one advantage and one return for all tokens of an answer.

    An answer earns the discounted sum of its rewards, and is worth the mean of the values before
    its tokens. Between answers these are generalised advantages, with `gae_lambda` per turn; what
    comes after one is discounted per turn and per token.
    """
    per_turn, per_token = discounts
    there = mask.bool()
    factors = per_token ** torch.arange(rewards.shape[-1], dtype=rewards.dtype).to(rewards)
    earned = torch.where(there, rewards * factors, 0.0).sum(-1)
    worth = torch.where(there, values, 0.0).sum(-1) / there.sum(-1).clamp(min=1)
    each = generalized_advantages(
        earned, worth, bootstrap, per_turn * per_token, gae_lambda, there[..., 0]
    )
    advantages, returns = (torch.where(there, one[..., None], 0.0) for one in each)
    return advantages, returns


def mean_and_variance(
    x: Tensor, mask: Tensor | None = None, ddof: int = 1, reduce: Reduce = one_rank
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and variance over all masked-in values of all ranks, as float64 scalars.

    Two passes: the deviations are from the GLOBAL mean, since combining variances around each
    rank's own mean gives other numbers. Fewer values than ddof + 1 have variance 0. Summed in
    float64 so that splitting a batch moves nothing.
    """
    present = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.bool()
    exact = torch.where(present, x.detach(), 0.0).double()
    count, total = reduce(torch.stack([present.sum().double(), exact.sum()])).unbind()
    mean = total / count.clamp(min=1)
    deviations = torch.where(present, exact - mean, 0.0).square().sum()
    variance = reduce(deviations.reshape(1))[0] / (count - ddof).clamp(min=1)
    return count, mean, variance


def whiten(
    x: Tensor,
    mask: Tensor | None = None,
    ddof: int = 1,
    eps: float = 1e-8,
    shift_mean: bool = True,
    reduce: Reduce = one_rank,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over all ranks, 0 where the mask is; `shift_mean=False`
    puts the mean back.

    ddof: 1 is Bessel's correction (torch implementations of PPO), 0 the population variance
    (Ziegler et al. 2019's code). A single value whitens to 0.
    """
    _, mean, variance = mean_and_variance(x, mask, ddof, reduce)
    whitened = (x - mean) * torch.rsqrt(variance + eps)
    if not shift_mean:
        whitened = whitened + mean
    whitened = whitened.to(x.dtype)
    return whitened if mask is None else torch.where(mask.bool(), whitened, 0.0)


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor | None = None, reduce: Reduce = one_rank
) -> float | None:
    """1 - mean((values - returns)²) / var(returns) over all ranks: 1 is a perfect critic, 0 one
    that only knows the mean.

    None where the returns vary by no more than rounding: there is nothing to explain.
    """
    present = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
    count, mean, variance = mean_and_variance(returns, present, 0, reduce)
    errors = torch.where(present, values.detach() - returns, 0.0).double().square().sum()
    mean_error = reduce(errors.reshape(1))[0] / count.clamp(min=1)
    return None if variance <= (SAME * mean) ** 2 else 1.0 - (mean_error / variance).item()


LEAST_SHARE = 1e-4
"""Share of the variance of all returns below which those of a turn count as the same."""
EXACT_TURNS = 8
"""Turns that have a figure of their own; later ones share one with the others up to the next power
of two."""
TURN_GROUPS = 40
"""More than there are groups of turns. Every rank sums as many, however long its episodes are."""


def turn_group(turn: int) -> int:
    """Number of the group that the answered turn `turn`, from 1, belongs to."""
    if turn <= EXACT_TURNS:
        return turn - 1
    return EXACT_TURNS + (turn - 1).bit_length() - EXACT_TURNS.bit_length()


def turn_label(group: int) -> str:
    """Name of a group of turns: "1" … "8", "9-16", "17-32", …"""
    if group < EXACT_TURNS:
        return str(group + 1)
    first = EXACT_TURNS << (group - EXACT_TURNS)
    return f"{first + 1}-{2 * first}"


def explained_variance_by_turn(
    values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce = one_rank
) -> dict[str, float]:
    """`explained_variance` of each group of turns whose returns vary, over all ranks, by its label.
    values, returns, mask: [episodes, answered turns]."""
    group = torch.tensor(
        [turn_group(turn) for turn in range(1, values.shape[1] + 1)], device=values.device
    )

    def sums(*parts: Tensor) -> Tensor:
        """Over ranks and the turns of a group: [parts, TURN_GROUPS]."""
        by_turn = torch.stack([torch.where(mask, part, 0.0).sum(0) for part in parts])
        return reduce(by_turn.new_zeros(len(parts), TURN_GROUPS).index_add(1, group, by_turn))

    exact, target = values.detach().double(), returns.double()
    counts, totals = sums(torch.ones_like(target), target)
    means = totals / counts.clamp(min=1)
    errors, spreads = sums((exact - target).square(), (target - means[group]).square())
    # Beside the spread of all turns: what varies by rounding alone has nothing to explain.
    mean = totals.sum() / counts.sum().clamp(min=1)
    around = counts * (means - mean).square()
    variance = (spreads + around).sum() / counts.sum().clamp(min=1)
    varies = spreads > counts * torch.maximum(SAME**2 * means.square(), LEAST_SHARE * variance)
    return {
        turn_label(place): 1.0 - float(errors[place] / spreads[place])
        for place in varies.nonzero().flatten().tolist()
    }


def doubted(advantages: Tensor, stds: Tensor) -> Tensor:
    """advantages / (1 + σ), same shapes: less is learnt from a score that its reward model is
    unsure of.

    σ is in levels, of a model that gives probabilities of the levels 1…K.
    """
    return advantages / (1 + stds)
