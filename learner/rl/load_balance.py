"""The load-balancing loss of mixture layers as a loss term; shares of experts are counted over all
ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from common.models.layers.feed_forward import Routing, chosen_counts, load_balance
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm


def router_terms(
    routings: list[Routing], mask: Tensor, coefficient: float, group: Group
) -> list[LossTerm]:
    """None for a dense model. mask: real tokens of what was decoded."""
    if not routings:
        return []
    counts = group.sum(chosen_counts(routings, mask))
    tokens = group.sum(mask.sum().float())
    shares = list(counts / counts.sum(-1, keepdim=True))
    # Already divided by the global count, so each rank counts its part as 1 / ranks of one item.
    return [
        LossTerm(
            "train/loss_router",
            load_balance(routings, mask, shares, tokens),
            1.0 / group.size,
            coefficient,
        )
    ]


def no_router_terms(layers: int, experts: int, coefficient: float, group: Group) -> list[LossTerm]:
    """The same of a rank that decoded nothing in this step: it must take part in the collectives
    all the same."""
    if not experts:
        return []
    group.sum(torch.zeros(layers, experts, device=group.device))
    group.sum(torch.zeros((), device=group.device))
    nothing = torch.zeros((), device=group.device)
    return [LossTerm("train/loss_router", nothing, 1.0 / group.size, coefficient)]
