"""From logits to tokens: temperature, top-k, top-p, min-p, greedy, with one uniform number per row.

A token is the inverse of the cumulative distribution at its uniform, so it depends on nothing but
its own row: not on the batch it is in, nor on what other rows drew. The log-prob returned is that
of the very distribution the token was drawn from, after temperature and filters. Greedy rows draw
nothing; theirs is the log-prob under temperature 1 without filters, because under their own it is
always 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from common.config.rollout import Sampling

_BLOCK = 64


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits of the distribution that is sampled from: divided by the temperature, -inf where a
    filter excludes a token.

    logits [rows, vocabulary]. Filters apply in the order top-k, top-p, min-p, each to what the one
    before left, renormalised; the most probable token always stays. top-p keeps the token with
    which the sum reaches `top_p`. Ties go to the lower token id. A temperature of 0 leaves logits
    as they are: greedy rows need no distribution of their own.
    """
    if sampling.temperature == 0:
        return logits
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    vocabulary = logits.shape[-1]
    top_k = min(sampling.top_k, vocabulary) or vocabulary
    if top_k < vocabulary or sampling.top_p < 1:
        ordered, tokens = logits.sort(dim=-1, descending=True, stable=True)
        ordered[:, top_k:] = -torch.inf
        if sampling.top_p < 1:
            probabilities = ordered.softmax(-1)
            before = probabilities.cumsum(-1) - probabilities
            before[:, 0] = 0
            ordered = ordered.masked_fill(before >= sampling.top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter_(-1, tokens, ordered)
    if sampling.min_p > 0:
        floor = logits.amax(-1, keepdim=True) + torch.log(
            torch.tensor(sampling.min_p, dtype=logits.dtype)
        )
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return logits


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The token of each row at which the running sum of its weights passes uniform × total: int64
    [rows].

    weights [rows, vocabulary], not negative, total > 0; uniforms float64 [rows] in [0, 1). A token
    of weight 0 is never returned: the sum does not rise at it. Two levels, first sums of blocks and
    then one block, because a running sum over a vocabulary is slow everywhere.
    """
    blocks = F.pad(weights, (0, -weights.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    ends = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    total = ends[:, -1:]
    target = torch.minimum(
        uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total))
    )
    # Clamped for rows of NaN, where no sum is passed: their token means nothing, but others' must
    # still come out.
    block = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[-1] - 1)
    start = F.pad(ends, (1, 0)).gather(-1, block)
    inside = (
        blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK))
        .squeeze(1)
        .cumsum(-1, dtype=torch.float64)
    )
    # Rounding may put the target a hair past the end of its block, where no token is.
    last = inside[:, -1:]
    token = torch.searchsorted(
        inside,
        torch.minimum(target - start, torch.nextafter(last, torch.zeros_like(last))),
        right=True,
    )
    return (block * _BLOCK + token).squeeze(-1).clamp_(max=weights.shape[-1] - 1)


class Sampled(NamedTuple):
    """tokens int64 [rows]; log_probs float32 [rows] of the distribution they were drawn from;
    unfiltered: the same under the temperature alone, None where no filter is on and the two
    agree."""

    tokens: Tensor
    log_probs: Tensor
    unfiltered: Tensor | None


def sample(
    logits: Tensor, uniforms: Tensor, sampling: Sampling, greedy: Tensor | None = None
) -> Sampled:
    """One token for each row of logits [rows, vocabulary].

    uniforms: float64 [rows] in [0, 1). greedy: bool [rows], the rows that take the most probable
    token; None: none, or all of them where the temperature is 0. A row whose logits are not finite
    gets a token that means nothing and a log-prob that is not finite.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        return _most_probable(logits)
    tokens, log_probs = _draw(filtered(logits, sampling), uniforms)
    unfiltered = _log_probs(logits / sampling.temperature, tokens) if sampling.filtered else None
    if greedy is None:
        return Sampled(tokens, log_probs, unfiltered)
    best = _most_probable(logits)
    if unfiltered is not None:
        unfiltered = torch.where(greedy, best.log_probs, unfiltered)
    return Sampled(
        torch.where(greedy, best.tokens, tokens),
        torch.where(greedy, best.log_probs, log_probs),
        unfiltered,
    )


def _most_probable(logits: Tensor) -> Sampled:
    tokens = logits.argmax(-1)
    return Sampled(tokens, _log_probs(logits, tokens), None)


def _draw(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of `uniforms` and their log-probs under logits."""
    tokens = inverse_cdf(logits.softmax(-1), uniforms)
    return tokens, _log_probs(logits, tokens)


def _log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
