"""One attention module for every use: self, memory cross-attention, memory write; MHA, GQA, MQA and SQA by head counts.

Queries and keys/values are separate calls so that a caller can keep keys and values (memory: once per turn; self-attention: one
position at a time). Rotary positions are applied where a table is handed in, and nowhere else: slots of memory are a set.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@lru_cache(maxsize=32)
def rope_table(length: int, head_dim: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [length, head_dim / 2] of rotary positions (Su 2021, arXiv 2104.09864), float32."""
    with torch.inference_mode(False), torch.no_grad():
        frequencies = base ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float64) / head_dim)
        angles = torch.arange(length, device=device, dtype=torch.float64)[:, None] * frequencies
        return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs (2i, 2i + 1). x: [batch, heads, tokens, head_dim]; cos, sin broadcast to its pairs."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Attention(nn.Module):
    """Projections without bias for queries, keys and values; an output projection with bias (facts 1.3)."""

    def __init__(self, width: int, head_dim: int, query_heads: int, kv_heads: int):
        super().__init__()
        self.head_dim, self.query_heads, self.kv_heads = head_dim, query_heads, kv_heads
        self.query = nn.Linear(width, query_heads * head_dim, bias=False)
        self.key = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.value = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.output = nn.Linear(query_heads * head_dim, width)

    def queries(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x [batch, tokens, width] → [batch, query_heads, tokens, head_dim], rotated by `rope` = (cos, sin) where given."""
        q = self.query(x).unflatten(-1, (self.query_heads, self.head_dim)).transpose(1, 2)
        return q if rope is None else rotate(q, *rope)

    def keys_values(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """x [batch, tokens, width] → keys, values [batch, kv_heads, tokens, head_dim]; keys rotated by `rope` where given."""
        k = self.key(x).unflatten(-1, (self.kv_heads, self.head_dim)).transpose(1, 2)
        v = self.value(x).unflatten(-1, (self.kv_heads, self.head_dim)).transpose(1, 2)
        return (k if rope is None else rotate(k, *rope)), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Scaled dot-product attention and the output projection → [batch, tokens, width].

        mask: bool, broadcast to [batch, heads, queries, keys], True where a query may look. Each query must see a key.
        """
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.query_heads != self.kv_heads)
        return self.output(out.transpose(1, 2).flatten(2))
