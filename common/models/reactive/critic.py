"""The critic: what reward does this query promise, given the interaction before it?

An encoder like the policy's, started from its weights, reads the previous interaction and the query
in one sequence, and gives one value per interaction. It does not see the answer, so it stays a
baseline: it cannot leak what the policy did.

A reward for a fact that was told five turns ago is not in that sequence. With `reads_memory` the
states of each layer also look at that layer of the memory which the query is answered with, so the
critic can tell a memory that holds the fact from one that lost it. The memory comes in as a value
without gradient.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.layers.attention import rope_table
from common.models.layers.exact import exact
from common.models.reactive.config import RxTConfig
from common.models.reactive.encoder import Encoder
from common.models.reactive.memory_look import MemoryLook, start_as_decoder
from common.models.reactive.model import ReactiveTransformer


class Critic(nn.Module):
    def __init__(self, config: RxTConfig, reads_memory: bool = False):
        super().__init__()
        longer = copy.copy(config)
        longer.max_tokens = 2 * config.max_tokens
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.encoder = Encoder(longer)
        self.hidden = nn.Linear(config.width, 2 * config.width)
        self.norm = nn.LayerNorm(config.width)
        self.value = nn.Linear(config.width, 1)
        self.looks = nn.ModuleList(
            MemoryLook(config) for _ in range(config.layers if reads_memory else 0)
        )
        # The same for all queries at first: a random value function would be noise in the first
        # advantages.
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    @classmethod
    def from_policy(cls, model: ReactiveTransformer, reads_memory: bool = False) -> Critic:
        """Encoder and embedding start as the policy's, and so does reading memory."""
        critic = cls(model.config, reads_memory)
        critic.embedding.load_state_dict(model.embedding.state_dict())
        critic.encoder.load_state_dict(model.encoder.state_dict())
        if reads_memory:
            start_as_decoder(critic.looks, model)
        return critic

    def forward(self, tokens: Tensor, mask: Tensor, memory: Tensor | None = None) -> Tensor:
        """tokens int64 [rows, tokens], previous interaction then query; mask bool; memory [rows,
        layers, slots, width], where the critic reads it → values [rows]."""
        layers = self.encoder(self.embedding(tokens), mask)
        states = layers[:, -1]
        if memory is not None:
            states = states + self._read(layers, mask, memory)
        pooled = states.sum(1) / mask.sum(1, keepdim=True)
        value, gate = self.hidden(pooled).chunk(2, dim=-1)
        return exact(self.value(self.norm(value * F.silu(gate)))).squeeze(-1)

    def _read(self, states: Tensor, mask: Tensor, memory: Tensor) -> Tensor:
        """Sum over layers of what the states of a layer find in that layer of memory, 0 at padding.
        states [rows, layers, tokens, width] → [rows, tokens, width]."""
        config = self.encoder.config
        rope = rope_table(config.positions, config.head_dim, config.rope_base, states.device)
        rope = rope[: states.shape[2]]
        found = [look(states[:, i], rope, memory[:, i]) for i, look in enumerate(self.looks)]
        return torch.stack(found).sum(0) * mask.unsqueeze(-1)
