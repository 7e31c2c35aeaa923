"""The memory encoder: reads a whole interaction in both directions and returns what each layer made of it.

It never reads memory. So all interactions of an episode can be encoded in one batch, before any memory is known.

Interactions are of all lengths, and only attention needs to know which tokens are one sequence: everything else is computed for the real
tokens of the batch one after another, without padding between them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.data.grouping import by_width
from common.models.attention import Attention, rope_table
from common.models.configuration import RxTConfig
from common.models.feed_forward import FeedForward
from common.models.rows import TOKENS, round_up

ATTENTION_CALL = 128
"""Tokens of padding that cost as much as one more call of attention."""


class Group(NamedTuple):
    """Sequences that attention takes together."""

    packed: Tensor
    """Where their tokens lie in the packed rows, sequence by sequence."""
    padded: Tensor
    """Where the same tokens lie in [sequences · width]."""
    mask: Tensor
    """bool [sequences, 1, 1, width]."""


class Packing:
    """Where the real tokens of a right-padded batch lie. mask: bool [batch, tokens].

    The count of packed rows is a multiple of `TOKENS` (common/models/rows.py): up to `TOKENS` - 1 rows of zeros come after the real ones.
    """

    def __init__(self, mask: Tensor):
        self.batch, self.tokens = mask.shape
        self.places = mask.flatten().nonzero().squeeze(1)
        self.extra = -len(self.places) % TOKENS
        self.positions = F.pad(self.places % self.tokens, (0, self.extra))
        lengths = mask.sum(1).tolist()
        widths = [min(round_up(max(1, length), TOKENS), self.tokens) for length in lengths]
        ends = torch.cumsum(torch.tensor(lengths), 0).tolist()
        self.groups = []
        for rows in by_width(widths, ATTENTION_CALL):
            seen = mask[rows, : max(widths[row] for row in rows)]
            packed = torch.cat([torch.arange(ends[row] - lengths[row], ends[row]) for row in rows]).to(mask.device)
            self.groups.append(Group(packed, seen.flatten().nonzero().squeeze(1), seen[:, None, None, :]))

    def pack(self, x: Tensor) -> Tensor:
        """[batch, tokens, …] → [packed, …]."""
        rows = x.flatten(0, 1).index_select(0, self.places)
        return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, self.extra))

    def unpack(self, rows: Tensor) -> Tensor:
        """[packed, …] → [batch, tokens, …], 0 at padding."""
        flat = rows.new_zeros(self.batch * self.tokens, *rows.shape[1:])
        return flat.index_copy(0, self.places, rows[: len(self.places)]).unflatten(0, (self.batch, self.tokens))


class EncoderLayer(nn.Module):
    def __init__(self, config: RxTConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config.width, config.head_dim, config.query_heads, config.kv_heads)
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.feed_forward = FeedForward(config.width, config.encoder_ff)

    def forward(self, x: Tensor, rope: Tensor, groups: list[Group]) -> Tensor:
        """x [packed, width], rope [packed, head_dim / 2] → [packed, width]."""
        attention = self.attention
        # [packed, heads, head_dim] with queries, keys and values as heads beside each other, so that they move in one piece.
        heads = torch.cat(attention.queries_keys_values(self.attention_norm(x)[None], rope), dim=1)[0].transpose(0, 1)
        seen = heads.new_zeros(len(x), attention.query_heads, attention.head_dim)
        for group in groups:
            sequences, width = len(group.mask), group.mask.shape[-1]
            padded = heads.new_zeros(sequences * width, *heads.shape[1:]).index_copy(0, group.padded, heads.index_select(0, group.packed))
            parts = padded.view(sequences, width, *heads.shape[1:]).transpose(1, 2)
            queries, keys, values = parts.split((attention.query_heads, attention.kv_heads, attention.kv_heads), dim=1)
            looked = attention.look(queries, keys, values, group.mask)
            seen = seen.index_copy(0, group.packed, looked.transpose(1, 2).flatten(0, 1).index_select(0, group.padded))
        x = x + attention.project(seen.transpose(0, 1)[None])[0]
        return x + self.feed_forward(self.feed_forward_norm(x))


class Encoder(nn.Module):
    def __init__(self, config: RxTConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """embedded [batch, tokens, width], mask bool [batch, tokens], right-padded → [batch, layers, tokens, width], 0 at padding."""
        packing = Packing(mask)
        rope = rope_table(self.config.positions, self.config.head_dim, self.config.rope_base, embedded.device)[packing.positions]
        states, x = [], packing.pack(embedded)
        for layer in self.layers:
            x = layer(x, rope, packing.groups)
            states.append(x)
        return packing.unpack(torch.stack(states, dim=1)).transpose(1, 2)


class MaskedLMHead(nn.Module):
    """Predicts masked tokens from the encoder's last layer; needed in stages 1 and 2 only, so it is not part of the model."""

    def __init__(self, config: RxTConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.width, config.width), nn.GELU(), nn.LayerNorm(config.width), nn.Linear(config.width, config.vocab_size)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layers(hidden)
