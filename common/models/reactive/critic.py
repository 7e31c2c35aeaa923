"""The critic: what reward does this query promise, given the interaction before it?

An encoder like the policy's, started from its weights, reads the previous interaction and the query
in one sequence, and gives one value per interaction. It sees neither memory nor answer, so it stays
a baseline: it cannot leak what the policy did.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from common.models.reactive.config import RxTConfig
from common.models.reactive.encoder import Encoder
from common.models.reactive.model import ReactiveTransformer


class Critic(nn.Module):
    def __init__(self, config: RxTConfig):
        super().__init__()
        longer = copy.copy(config)
        longer.max_tokens = 2 * config.max_tokens
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.encoder = Encoder(longer)
        self.hidden = nn.Linear(config.width, 2 * config.width)
        self.norm = nn.LayerNorm(config.width)
        self.value = nn.Linear(config.width, 1)
        # Zero at first: a random value function would be noise in the first advantages.
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    @classmethod
    def from_policy(cls, model: ReactiveTransformer) -> Critic:
        critic = cls(model.config)
        critic.embedding.load_state_dict(model.embedding.state_dict())
        critic.encoder.load_state_dict(model.encoder.state_dict())
        return critic

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens int64 [rows, tokens], previous interaction then query; mask bool → values
        [rows]."""
        states = self.encoder(self.embedding(tokens), mask)[:, -1]
        pooled = states.sum(1) / mask.sum(1, keepdim=True)
        value, gate = self.hidden(pooled).chunk(2, dim=-1)
        return self.value(self.norm(value * F.silu(gate))).squeeze(-1)
