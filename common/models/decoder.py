"""The decoder: writes the answer, reading memory through cross-attention in every layer.

Queries of the cross-attention carry token positions, slots carry none. Keys and values of memory depend on memory alone:
`read_memory` makes them once per turn. Whole sequences and single new tokens take the same path: who generates hands in a
`KeyValueCache`, which decides what new tokens see of older ones.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from common.models.attention import Attention, rope_table
from common.models.configuration import RxTConfig
from common.models.feed_forward import FeedForward, MixtureOfExperts, Routing
from common.models.rows import Linear


class KeyValueCache(Protocol):
    """What the tokens of earlier calls left behind."""

    positions: Tensor
    """int64 [batch, tokens] of the new tokens, 0 at [BOS]; [tokens] where all rows have the same."""

    def attend(self, layer: int, attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Keep keys and values [batch, kv_heads, tokens, head_dim] of the new tokens; `attention.attend` over all that they may look at."""


class DecoderLayer(nn.Module):
    def __init__(self, config: RxTConfig, index: int):
        super().__init__()
        self.index = index
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config.width, config.head_dim, config.query_heads, config.kv_heads)
        self.memory_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.cross_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.cross_attention = Attention(
            config.width, config.head_dim, config.cross_query_heads or config.query_heads, config.cross_kv_heads or config.kv_heads
        )
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.feed_forward: FeedForward | MixtureOfExperts = (
            MixtureOfExperts(config.width, config.decoder_ff, config.experts, config.experts_per_token)
            if config.experts
            else FeedForward(config.width, config.decoder_ff)
        )

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        memory_keys: Tensor,
        memory_values: Tensor,
        routings: list[Routing] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """x [batch, tokens, width], from position 0 on without a cache; memory keys, values [batch, kv_heads, slots, head_dim]."""
        queries, keys, values = self.attention.queries_keys_values(self.attention_norm(x), rope)
        if cache is None:
            x = x + self.attention.attend(queries, keys, values, causal=True)
        else:
            x = x + cache.attend(self.index, self.attention, queries, keys, values)
        x = x + self.cross_attention.attend(self.cross_attention.queries(self.cross_norm(x), rope), memory_keys, memory_values)
        return x + self.feed_forward(self.feed_forward_norm(x), routings)


class Decoder(nn.Module):
    def __init__(self, config: RxTConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.layers))
        self.head_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.head = Linear(config.width, config.vocab_size)

    def read_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """memory [batch, layers, slots, width] → keys, values [layers, batch, kv_heads, slots, head_dim]."""
        pairs = [layer.cross_attention.keys_values(layer.memory_norm(memory[:, i])) for i, layer in enumerate(self.layers)]  # type: ignore[union-attr,operator]
        return torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs])

    def forward(
        self,
        embedded: Tensor,
        memory_keys: Tensor,
        memory_values: Tensor,
        routings: list[Routing] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states [batch, tokens, width] of right-padded sequences; causality keeps padding out of real positions.

        With a cache, of the new tokens alone, which stand at `cache.positions`.
        """
        table = rope_table(self.config.positions, self.config.head_dim, self.config.rope_base, embedded.device)
        rope = table[: embedded.shape[1]] if cache is None else table[cache.positions].unsqueeze(-3)
        x = embedded
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, memory_keys[i], memory_values[i], routings, cache)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(self.head_norm(hidden))
