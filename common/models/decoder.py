"""The decoder: writes the answer, reading memory through cross-attention in every layer.

Queries of the cross-attention carry token positions, slots carry none. Keys and values of memory depend on memory alone:
`read_memory` makes them once per turn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.models.attention import Attention, rope_table
from common.models.configuration import RxTConfig
from common.models.feed_forward import FeedForward, MixtureOfExperts, Routing


class DecoderLayer(nn.Module):
    def __init__(self, config: RxTConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config.width, config.head_dim, config.query_heads, config.kv_heads)
        self.memory_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.cross_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.cross_attention = Attention(config.width, config.head_dim, config.cross_query_heads, config.cross_kv_heads)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.feed_forward: FeedForward | MixtureOfExperts = (
            MixtureOfExperts(config.width, config.decoder_ff, config.experts, config.experts_per_token)
            if config.experts
            else FeedForward(config.width, config.decoder_ff)
        )

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], memory_keys: Tensor, memory_values: Tensor, routings: list[Routing] | None = None
    ) -> Tensor:
        """x [batch, tokens, width] from position 0 on; memory keys, values [batch, kv_heads, slots, head_dim]."""
        normed = self.attention_norm(x)
        keys, values = self.attention.keys_values(normed, rope)
        x = x + self.attention.attend(self.attention.queries(normed, rope), keys, values, causal=True)
        x = x + self.cross_attention.attend(self.cross_attention.queries(self.cross_norm(x), rope), memory_keys, memory_values)
        return x + self.feed_forward(self.feed_forward_norm(x), routings)


class Decoder(nn.Module):
    def __init__(self, config: RxTConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.head_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size)

    def read_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """memory [batch, layers, slots, width] → keys, values [layers, batch, kv_heads, slots, head_dim]."""
        pairs = [layer.cross_attention.keys_values(layer.memory_norm(memory[:, i])) for i, layer in enumerate(self.layers)]  # type: ignore[union-attr,operator]
        return torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs])

    def forward(self, embedded: Tensor, memory_keys: Tensor, memory_values: Tensor, routings: list[Routing] | None = None) -> Tensor:
        """Hidden states [batch, tokens, width] of whole right-padded sequences; causality keeps padding out of real positions."""
        cos, sin = rope_table(self.config.max_tokens, self.config.head_dim, self.config.rope_base, embedded.device)
        rope = cos[: embedded.shape[1]], sin[: embedded.shape[1]]
        x = embedded
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, memory_keys[i], memory_values[i], routings)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(self.head_norm(hidden))
