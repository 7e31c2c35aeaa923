"""The memory encoder: reads a whole interaction in both directions and returns what each layer made
of it.

It never reads memory. So all interactions of an episode can be encoded in one batch, before any
memory is known.

Interactions are of all lengths, and only attention needs to know which tokens are one sequence:
everything else is computed for the real tokens of the batch one after another, without padding
between them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.data.bucketing import by_width
from common.models.layers.attention import SelfAttention, added_mask, rope_table
from common.models.layers.batch_invariant import TOKENS, round_up
from common.models.layers.feed_forward import FeedForward
from common.models.reactive.config import RxTConfig

ATTENTION_CALL = 128
"""Tokens of padding that cost as much as one more call of attention."""


DENSE = 0.9
"""Share of real tokens from which a batch is computed as it is: moving tokens about would cost more
than the padding."""


class Group(NamedTuple):
    """Sequences that attention takes together."""

    packed: Tensor | None
    """Where their tokens lie in the packed rows, sequence by sequence; None: the rows are the
    padded batch."""
    padded: Tensor | None
    """Where the same tokens lie in [sequences · width]."""
    mask: Tensor
    """[sequences, 1, 1, width], to be added to scores."""

    def unpack(self, rows: Tensor) -> Tensor:
        """[packed, …] → [sequences, width, …]."""
        sequences, width = len(self.mask), self.mask.shape[-1]
        if self.packed is None or self.padded is None:
            return rows.unflatten(0, (sequences, width))
        flat = rows.new_zeros(sequences * width, *rows.shape[1:]).index_copy(
            0, self.padded, rows.index_select(0, self.packed)
        )
        return flat.unflatten(0, (sequences, width))

    def pack(self, x: Tensor, rows: Tensor) -> Tensor:
        """`rows` [packed, …] with those of this group taken from x [sequences, width, …]."""
        if self.packed is None or self.padded is None:
            return x.flatten(0, 1)
        return rows.index_copy(0, self.packed, x.flatten(0, 1).index_select(0, self.padded))


class Packing:
    """Where the real tokens of a right-padded batch lie. mask: bool [batch, tokens]; rope
    [at least tokens, 2, head_dim]; dtype: of what will be computed.

    The count of packed rows is a multiple of `TOKENS` (common/models/layers/batch_invariant.py): up
    to `TOKENS` - 1 rows of zeros come after the real ones.
    """

    def __init__(self, mask: Tensor, rope: Tensor, dtype: torch.dtype):
        self.batch, self.tokens = mask.shape
        self.mask = mask
        self.dense = int(mask.sum()) >= DENSE * mask.numel() and self.tokens % TOKENS == 0
        if self.dense:
            self._rope = rope[: self.tokens].repeat(self.batch, 1, 1)
            self._groups = [Group(None, None, added_mask(mask, dtype)[:, None, None])]
            return
        self.places = mask.flatten().nonzero().squeeze(1)
        self.extra = -len(self.places) % TOKENS
        self._rope = rope[F.pad(self.places % self.tokens, (0, self.extra))]
        lengths = mask.sum(1).tolist()
        widths = [min(round_up(max(1, length), TOKENS), self.tokens) for length in lengths]
        ends = torch.cumsum(torch.tensor(lengths), 0).tolist()
        self._groups = []
        for rows in by_width(widths, ATTENTION_CALL):
            seen = mask[rows, : max(widths[row] for row in rows)]
            packed = torch.cat(
                [torch.arange(ends[row] - lengths[row], ends[row]) for row in rows]
            ).to(mask.device)
            self._groups.append(
                Group(
                    packed,
                    seen.flatten().nonzero().squeeze(1),
                    added_mask(seen, dtype)[:, None, None],
                )
            )

    def pack(self, x: Tensor) -> Tensor:
        """[batch, tokens, …] → [packed, …]."""
        if self.dense:
            return x.flatten(0, 1)
        rows = x.flatten(0, 1).index_select(0, self.places)
        return F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, self.extra))

    def unpack(self, rows: Tensor) -> Tensor:
        """[packed, …] → [batch, tokens, …], 0 at padding."""
        if self.dense:
            x = rows.unflatten(0, (self.batch, self.tokens))
            return x * self.mask.view(self.batch, self.tokens, *(1,) * (x.dim() - 2)).to(x.dtype)
        flat = rows.new_zeros(self.batch * self.tokens, *rows.shape[1:])
        return flat.index_copy(0, self.places, rows[: len(self.places)]).unflatten(
            0, (self.batch, self.tokens)
        )

    def see(self, attention: SelfAttention, x: Tensor) -> Tensor:
        """Self-attention of each sequence before the output projection. x [packed, width] →
        [packed, query_heads · head_dim]."""
        parts = [
            part[0].transpose(0, 1) for part in attention.queries_keys_values(x[None], self._rope)
        ]
        seen = parts[0].new_zeros(len(x), attention.query_heads, attention.head_dim)
        for group in self._groups:
            queries, keys, values = (group.unpack(part).transpose(1, 2) for part in parts)
            seen = group.pack(
                attention.look(queries, keys, values, group.mask).transpose(1, 2), seen
            )
        return seen.flatten(1)


class EncoderLayer(nn.Module):
    def __init__(self, config: RxTConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = SelfAttention(
            config.width, config.head_dim, config.query_heads, config.kv_heads
        )
        self.feed_forward_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.feed_forward = FeedForward(config.width, config.encoder_ff)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """x [packed, width] → [packed, width]."""
        x = x + self.attention.output(packing.see(self.attention, self.attention_norm(x)))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Encoder(nn.Module):
    def __init__(self, config: RxTConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """embedded [batch, tokens, width], mask bool [batch, tokens], right-padded → [batch,
        layers, tokens, width], 0 at padding."""
        rope = rope_table(
            self.config.positions, self.config.head_dim, self.config.rope_base, embedded.device
        )
        packing = Packing(mask, rope, embedded.dtype)
        states, x = [], packing.pack(embedded)
        for layer in self.layers:
            x = layer(x, packing)
            states.append(x)
        return packing.unpack(torch.stack(states, dim=1)).transpose(1, 2)


class MaskedLMHead(nn.Module):
    """Predicts masked tokens from the encoder's last layer; needed in stages 1 and 2 only, so it is
    not part of the model."""

    def __init__(self, config: RxTConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.width, config.width),
            nn.GELU(),
            nn.LayerNorm(config.width),
            nn.Linear(config.width, config.vocab_size),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layers(hidden)


class NeighbourHead(nn.Module):
    """Predicts the tokens around each token from the encoder's last layer: a linear map for each
    offset, then one head for all. Needed in stages 1 and 2 only, as `MaskedLMHead`."""

    def __init__(self, config: RxTConfig, reach: int):
        """reach: offsets are -reach … -1 and 1 … reach."""
        super().__init__()
        self.offsets = [offset for offset in range(-reach, reach + 1) if offset]
        self.maps = nn.ModuleList(nn.Linear(config.width, config.width) for _ in self.offsets)
        self.head = MaskedLMHead(config)

    def forward(self, hidden: Tensor, offset: int) -> Tensor:
        """Logits [..., vocabulary] of the tokens `offset` positions after those of hidden
        [..., width]."""
        return self.head(self.maps[self.offsets.index(offset)](hidden))
