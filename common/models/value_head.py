"""A value head for any language model: hidden states in, one value each out.

A module of its own, and no subclass of the language model: any model that returns hidden states has
it, and its checkpoints stay those of the language model.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from common.models.layers.exact import no_autocast


class ValueHead(nn.Module):
    """layers 1: linear(width, 1). 2: linear(width, 2·width), ReLU, linear(2·width, 1). A new head
    gives 0 everywhere, so that it begins as no baseline rather than as a random one.

    detach: whether no gradient reaches the hidden states.
    """

    def __init__(self, width: int, layers: Literal[1, 2] = 2, detach: bool = False):
        super().__init__()
        self.detach = detach
        inner = width if layers == 1 else 2 * width
        hidden = [] if layers == 1 else [nn.Linear(width, inner), nn.ReLU()]
        self.hidden = nn.Sequential(*hidden)
        self.value = nn.Linear(inner, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, states: Tensor) -> Tensor:
        """states [..., width] → [...], in float32."""
        if self.detach:
            states = states.detach()
        with no_autocast(states):
            values: Tensor = self.value(self.hidden(states.float())).squeeze(-1)
        return values

    @torch.no_grad()
    def begin(self, value: float) -> None:
        """Give this value to every state, before anything is learnt."""
        self.value.bias.fill_(value)
