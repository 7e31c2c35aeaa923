"""Attention for every use: of tokens to each other, to memory, of memory to tokens; MHA, GQA, MQA
and SQA by head counts.

Queries and keys/values can be asked for apart, so that a caller can keep keys and values (memory:
once per turn; self-attention: one position at a time). Rotary positions are applied where a table
is handed in, and nowhere else: slots of memory are a set.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.layers.batch_invariant import Linear
from common.models.layers.exact import exact


@lru_cache(maxsize=32)
def rope_table(length: int, head_dim: int, base: float, device: torch.device) -> Tensor:
    """Rotary positions (Su 2021, arXiv 2104.09864), float32 [length, 2, head_dim]: what a number
    and what its partner in the pair (2i, 2i + 1) are multiplied by."""
    with torch.inference_mode(False), torch.no_grad():
        frequencies = base ** (
            -torch.arange(0, head_dim, 2, device=device, dtype=torch.float64) / head_dim
        )
        angles = torch.arange(length, device=device, dtype=torch.float64)[:, None] * frequencies
        own = angles.cos().repeat_interleave(2, -1)
        partner = torch.stack((-angles.sin(), angles.sin()), -1).flatten(1)
        return torch.stack((own, partner), 1).float()


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate interleaved pairs (2i, 2i + 1). x: [batch, heads, tokens, head_dim]; rope
    [..., tokens, 2, head_dim], the batch before it where rows have positions of their own."""
    numbers = exact(x)
    own, partner = rope.unbind(-2)
    partners = numbers.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (numbers * own + partners * partner).to(x.dtype)


def added_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask, True where a query may look, as numbers to add to scores: attention would make
    them anew in every layer."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


class Attention(nn.Module):
    """Base of both kinds of attention. Projections to queries, keys and values have no bias, the
    output projection has one."""

    output: Linear
    """[..., query_heads · head_dim] → [..., width]."""

    def __init__(self, head_dim: int, query_heads: int, kv_heads: int):
        super().__init__()
        self.head_dim, self.query_heads, self.kv_heads = head_dim, query_heads, kv_heads

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Scaled dot-product attention and the output projection → [batch, tokens, width].

        mask: broadcast to [batch, heads, queries, keys]; bool, True where a query may look, or a
        number to add to its score. Each query must see a key.
        """
        return self.output(self.see(q, k, v, mask, causal))

    def see(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """`attend` before the output projection: [batch, tokens, query_heads · head_dim]."""
        return self.look(q, k, v, mask, causal).transpose(1, 2).flatten(2)

    def look(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """`see`, head by head: [batch, query_heads, tokens, head_dim]."""
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=self.query_heads != self.kv_heads
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class SelfAttention(Attention):
    """Queries, keys and values of one input by one matrix product, in this order."""

    def __init__(self, width: int, head_dim: int, query_heads: int, kv_heads: int):
        super().__init__(head_dim, query_heads, kv_heads)
        self.input = Linear(width, (query_heads + 2 * kv_heads) * head_dim, bias=False)
        self.output = Linear(query_heads * head_dim, width)

    def queries_keys_values(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [batch, tokens, width] → queries [batch, query_heads, tokens, head_dim], keys and
        values [batch, kv_heads, tokens, head_dim]; queries and keys rotated."""
        heads = self._heads(self.input(x))
        rotated = rotate(heads[:, : self.query_heads + self.kv_heads], rope)
        return (
            rotated[:, : self.query_heads],
            rotated[:, self.query_heads :],
            heads[:, self.query_heads + self.kv_heads :],
        )


class Asking(Attention):
    """Queries of one input; what is asked is made elsewhere."""

    def __init__(self, width: int, head_dim: int, query_heads: int, kv_heads: int):
        super().__init__(head_dim, query_heads, kv_heads)
        self.query = Linear(width, query_heads * head_dim, bias=False)

    def queries(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        """x [batch, tokens, width] → [batch, query_heads, tokens, head_dim], rotated by `rope`
        where given."""
        q = self._heads(self.query(x))
        return q if rope is None else rotate(q, rope)


class SecondAttention(Asking):
    """Asks once more what a cross-attention asks, by its keys and values."""

    def __init__(self, width: int, head_dim: int, query_heads: int, kv_heads: int):
        super().__init__(width, head_dim, query_heads, kv_heads)
        self.output = Linear(query_heads * head_dim, width)


class CrossAttention(Asking):
    """One input asks, another is asked."""

    def __init__(self, width: int, head_dim: int, query_heads: int, kv_heads: int):
        super().__init__(width, head_dim, query_heads, kv_heads)
        self.key_value = Linear(width, 2 * kv_heads * head_dim, bias=False)
        self.output = Linear(query_heads * head_dim, width)

    def keys_values(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [batch, tokens, width] → keys, values [batch, kv_heads, tokens, head_dim]; keys rotated
        by `rope` where given."""
        heads = self._heads(self.key_value(x))
        k, v = heads[:, : self.kv_heads], heads[:, self.kv_heads :]
        return (k if rope is None else rotate(k, rope)), v

    def between(
        self, x: Tensor, y: Tensor, mask: Tensor | None = None, key_rope: Tensor | None = None
    ) -> Tensor:
        """Rows of x ask, rows of y answer; neither has an order but what `key_rope` gives to y.
        mask: as in `look`.

        x [batch, queries, width], y [batch, keys, width] → [batch, queries, width].
        """
        return self.attend(self.queries(x), *self.keys_values(y, key_rope), mask)
