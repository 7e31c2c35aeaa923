"""Position-wise feed-forward layers: one SwiGLU, or a mixture of SwiGLU experts with top-k
routing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.layers.batch_invariant import Linear, narrow_linear
from common.models.layers.exact import no_autocast

_FEW_TOKENS = 2048
"""Up to so many, a GPU computes every expert for every token where no gradient is asked for."""


def swiglu(x: Tensor) -> Tensor:
    """value · silu(gate) of x [..., 2 · width] = (value, gate) → [..., width] (Shazeer 2020, arXiv
    2002.05202)."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.silu(gate)


class Routing(NamedTuple):
    """Decisions of one mixture layer, for the load-balancing loss."""

    probabilities: Tensor
    """[tokens, experts], before the choice."""
    chosen: Tensor
    """[tokens, experts_per_token] expert indices."""


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202) with biases; `inner` is the width between, given
    directly."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.up = Linear(width, 2 * inner)
        self.down = Linear(inner, width)

    def forward(self, x: Tensor, routings: list[Routing] | None = None) -> Tensor:
        return self.down(swiglu(self.up(x)))


class MixtureOfExperts(nn.Module):
    """Every token goes through its `per_token` most probable experts, weighted by their
    renormalised probabilities.

    One expert alone is weighted by its probability as it is (Fedus 2021, arXiv 2101.03961, eq. 2):
    renormalised it would be 1 whatever the router says, and the router would learn nothing from
    what its choice was good for.

    No capacity limit, so no token is dropped and a token's output does not depend on the batch it
    is in.
    """

    def __init__(self, width: int, inner: int, experts: int, per_token: int):
        super().__init__()
        self.per_token = per_token
        self.router = Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.empty(experts, 2 * inner, width))
        self.up_bias = nn.Parameter(torch.empty(experts, 2 * inner))
        self.down = nn.Parameter(torch.empty(experts, width, inner))
        self.down_bias = nn.Parameter(torch.empty(experts, width))

    def forward(self, x: Tensor, routings: list[Routing] | None = None) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        probabilities, weights, chosen = self.shares(tokens)
        if routings is not None:
            routings.append(Routing(probabilities, chosen))
        if x.is_cuda and not torch.is_grad_enabled() and len(tokens) <= _FEW_TOKENS:
            return self.by_all_experts(tokens, weights, chosen).view_as(x)
        out = torch.zeros_like(tokens)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=self.up.shape[0]).tolist()
        start = 0
        for expert, count in enumerate(counts):
            if count == 0:
                continue
            picks = order[start : start + count]
            start += count
            rows = picks // self.per_token
            inner = swiglu(narrow_linear(tokens[rows], self.up[expert], self.up_bias[expert]))
            result = narrow_linear(inner, self.down[expert], self.down_bias[expert])
            out.index_add_(0, rows, (result * weights.flatten()[picks, None]).to(out.dtype))
        return out.view_as(x)

    def shares(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tokens [tokens, width] → probabilities [tokens, experts], and of the experts chosen
        weights and indices [tokens, per_token]."""
        with no_autocast(tokens):  # probabilities of a shorter type would tie
            probabilities = self.router(tokens).softmax(-1)
        weights, chosen = probabilities.topk(self.per_token, dim=-1)
        if self.per_token > 1:
            weights = weights / weights.sum(-1, keepdim=True)
        return probabilities, weights, chosen

    def by_all_experts(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """The same with every expert computed for every token: more arithmetic, but the host need
        not know how many chose which.

        tokens [tokens, width]; weights, chosen [tokens, per_token]. A decoding step on a GPU reads
        all experts' weights anyhow, and can only be recorded as a graph where nothing waits for the
        host.
        """
        share = tokens.new_zeros(len(tokens), len(self.up)).scatter_(1, chosen, weights)
        wide = torch.baddbmm(
            self.up_bias[:, None], tokens.expand(len(self.up), -1, -1), self.up.transpose(1, 2)
        )
        results = torch.baddbmm(self.down_bias[:, None], swiglu(wide), self.down.transpose(1, 2))
        return torch.einsum("te,etw->tw", share, results)


def load_balance(
    routings: list[Routing], mask: Tensor, chosen_share: list[Tensor], tokens: Tensor
) -> Tensor:
    """Switch load-balancing loss E · Σ_e f_e · P_e, averaged over layers (Fedus 2021, arXiv
    2101.03961, eq. 4).

    mask [batch, tokens]: real tokens; chosen_share: per layer f_e [experts], over all ranks;
    tokens: their count over all ranks. The sum of this over ranks is the loss of the whole batch:
    P_e is a local sum over the global count.
    """
    losses = []
    for routing, share in zip(routings, chosen_share, strict=True):
        mean_probability = (routing.probabilities * mask.reshape(-1, 1)).sum(0) / tokens
        losses.append(share.numel() * (share * mean_probability).sum())
    return torch.stack(losses).mean()


def chosen_counts(routings: list[Routing], mask: Tensor) -> Tensor:
    """How often each expert was chosen by real tokens: [layers, experts] float; sums over ranks."""
    counts = []
    for routing in routings:
        experts, per_token = routing.probabilities.shape[-1], routing.chosen.shape[-1]
        weights = mask.reshape(-1, 1).expand(-1, per_token).flatten().float()
        counts.append(
            torch.bincount(routing.chosen.flatten(), weights=weights, minlength=experts).float()
        )
    return torch.stack(counts)
