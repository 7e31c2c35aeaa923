"""The memory encoder: reads a whole interaction in both directions and returns what each layer made of it.

It never reads memory. So all interactions of an episode can be encoded in one batch, before any memory is known.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.models.attention import Attention, rope_table
from common.models.configuration import RxTConfig
from common.models.feed_forward import FeedForward


class EncoderLayer(nn.Module):
    def __init__(self, config: RxTConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config.width, config.head_dim, config.query_heads, config.kv_heads)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.feed_forward = FeedForward(config.width, config.encoder_ff)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor) -> Tensor:
        queries, keys, values = self.attention.queries_keys_values(self.attention_norm(x), rope)
        x = x + self.attention.attend(queries, keys, values, mask)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Encoder(nn.Module):
    def __init__(self, config: RxTConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """embedded [batch, tokens, width], mask bool [batch, tokens] → hidden states [batch, layers, tokens, width], 0 at padding."""
        rope = rope_table(self.config.positions, self.config.head_dim, self.config.rope_base, embedded.device)[: embedded.shape[1]]
        states, x = [], embedded
        for layer in self.layers:
            x = layer(x, rope, mask[:, None, None, :])
            states.append(x)
        return torch.stack(states, dim=1) * mask[:, None, :, None].to(x.dtype)


class MaskedLMHead(nn.Module):
    """Predicts masked tokens from the encoder's last layer; needed in stages 1 and 2 only, so it is not part of the model."""

    def __init__(self, config: RxTConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.width, config.width), nn.GELU(), nn.LayerNorm(config.width), nn.Linear(config.width, config.vocab_size)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layers(hidden)
