"""The decoder: writes the answer, reading memory through cross-attention in every layer.

Queries of the cross-attention carry token positions, slots carry none. Keys and values of memory
depend on memory alone: `read_memory` makes them once per turn. Whole sequences and single new
tokens take the same path: what tokens may look at, and how, is decided by the `Context` that the
caller hands in.

With `memory_reads` = 2 every layer reads the same layer of memory twice: what the first read found
is part of what the second asks for, so that a chain of two facts (who has it, where they are) can
be followed in one layer.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from common.models.layers.attention import (
    Asking,
    CrossAttention,
    SecondAttention,
    SelfAttention,
    rope_table,
)
from common.models.layers.batch_invariant import Linear
from common.models.layers.feed_forward import FeedForward, MixtureOfExperts, Routing
from common.models.reactive.config import RxTConfig


class Context(Protocol):
    """Keys and values that the tokens of a call attend to. Both methods take x [batch, tokens,
    width] and return the attention before its output projection: [batch, tokens, query_heads ·
    head_dim]."""

    def tokens(self, layer: int, attention: SelfAttention, x: Tensor) -> Tensor:
        """Self-attention to each other, and to tokens of earlier calls."""

    def memory(self, layer: int, attention: Asking, x: Tensor) -> Tensor:
        """Cross-attention to short-term memory."""


class Sequences:
    """Context of whole sequences from position 0 on, right-padded; causality keeps padding out of
    real positions.

    rope [tokens, 2, head_dim]; memory_keys, memory_values [layers, batch, kv_heads, slots,
    head_dim].
    """

    def __init__(self, rope: Tensor, memory_keys: Tensor, memory_values: Tensor):
        self.rope, self.memory_keys, self.memory_values = rope, memory_keys, memory_values

    def tokens(self, layer: int, attention: SelfAttention, x: Tensor) -> Tensor:
        return attention.see(*attention.queries_keys_values(x, self.rope), causal=True)

    def memory(self, layer: int, attention: Asking, x: Tensor) -> Tensor:
        return attention.see(
            attention.queries(x, self.rope), self.memory_keys[layer], self.memory_values[layer]
        )


class DecoderLayer(nn.Module):
    def __init__(self, config: RxTConfig, index: int):
        super().__init__()
        self.index = index
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = SelfAttention(
            config.width, config.head_dim, config.query_heads, config.kv_heads
        )
        self.memory_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.cross_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        heads = (
            config.cross_query_heads or config.query_heads,
            config.cross_kv_heads or config.kv_heads,
        )
        self.cross_attention = CrossAttention(config.width, config.head_dim, *heads)
        self.reads_again = config.memory_reads == 2
        if self.reads_again:
            self.second_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
            self.second_attention = SecondAttention(config.width, config.head_dim, *heads)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.feed_forward: FeedForward | MixtureOfExperts = (
            MixtureOfExperts(
                config.width, config.decoder_ff, config.experts, config.experts_per_token
            )
            if config.experts
            else FeedForward(config.width, config.decoder_ff)
        )

    def read_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """This layer of memory [batch, slots, width] → keys, values [batch, kv_heads, slots,
        head_dim]."""
        return self.cross_attention.keys_values(self.memory_norm(memory))

    def forward(self, x: Tensor, context: Context, routings: list[Routing] | None = None) -> Tensor:
        """x [batch, tokens, width]."""
        x = x + self.attention.output(
            context.tokens(self.index, self.attention, self.attention_norm(x))
        )
        x = x + self.cross_attention.output(
            context.memory(self.index, self.cross_attention, self.cross_norm(x))
        )
        if self.reads_again:
            x = x + self.second_attention.output(
                context.memory(self.index, self.second_attention, self.second_norm(x))
            )
        return x + self.feed_forward(self.feed_forward_norm(x), routings)


class Decoder(nn.Module):
    def __init__(self, config: RxTConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.layers))
        self.head_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.head = Linear(config.width, config.vocab_size)

    def read_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """memory [batch, layers, slots, width] → keys, values [layers, batch, kv_heads, slots,
        head_dim]."""
        pairs = [
            layer.read_memory(memory[:, i])  # type: ignore[operator]
            for i, layer in enumerate(self.layers)
        ]
        return torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs])

    def rope(self, device: torch.device) -> Tensor:
        """Rotation table of all positions, [positions, 2, head_dim]."""
        return rope_table(
            self.config.positions, self.config.head_dim, self.config.rope_base, device
        )

    def forward(
        self, embedded: Tensor, context: Context, routings: list[Routing] | None = None
    ) -> Tensor:
        """embedded [batch, tokens, width] → hidden states of the same shape."""
        x = embedded
        for layer in self.layers:
            x = layer(x, context, routings)
        return x

    def fill(self, embedded: Tensor, context: Context) -> None:
        """As `forward`, for a context that keeps keys and values: of the last layer, nothing else
        is computed than what gives those."""
        x = embedded
        for layer in self.layers[:-1]:
            x = layer(x, context)
        last = self.layers[-1]
        assert isinstance(last, DecoderLayer)
        context.tokens(last.index, last.attention, last.attention_norm(x))

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(self.head_norm(hidden))
