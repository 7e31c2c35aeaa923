"""Memory attention: rewrites the short-term memory from one encoded interaction.

Slots ask, tokens answer: per layer, queries come from the slots and keys and values from the same
layer's encoding, with positions on the keys only. Before that, a variant may let slots look at each
other (`self`), at the mean over layers (`interlayer`), or at a gated mixture of both
(`gated_self_interlayer`). Means are of the memory as it came in, so layers do not depend on each
other's order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.models.layers.attention import CrossAttention, added_mask, rope_table
from common.models.layers.batch_invariant import NarrowLinear, by_rows
from common.models.reactive.config import RxTConfig


class ResidualGate(nn.Module):
    """Mixes old and new slots (RxT paper, arXiv 2510.03561: residual gates of the memory
    attention).

    none: old + new. Otherwise g = activation(pre) and sigmoid: g·new + (1-g)·old; tanh: (1+g)·new +
    (1-g)·old. pre is a parameter (static), a parameter times the slot's status (elementwise), or a
    linear map of all slots' statuses (linear); status is the mean over width of old + new.
    """

    def __init__(self, config: RxTConfig):
        super().__init__()
        self.kind, self.activation, self.initial = (
            config.residual_gate,
            config.gate_activation,
            config.gate_initial,
        )
        gates = config.slots if config.gate_per_slot else 1
        self.per_slot, self.slots = config.gate_per_slot, config.slots
        if self.kind in ("static", "elementwise"):
            self.weight = nn.Parameter(torch.empty(gates))
        elif self.kind == "linear":
            self.linear = NarrowLinear(config.slots, gates)

    def forward(self, old: Tensor, new: Tensor) -> Tensor:
        """old, new: [batch, slots, width]."""
        if self.kind == "none":
            return old + new
        if self.kind == "static":
            pre: Tensor = self.weight
        else:
            status = (old + new).mean(-1)
            if self.kind == "linear":
                pre = self.linear(status)
            else:
                pre = self.weight * (status if self.per_slot else status.mean(-1, keepdim=True))
        gate = by_rows(torch.tanh if self.activation == "tanh" else torch.sigmoid, pre)
        if self.activation == "tanh":
            return 2 * torch.lerp(old, new, ((1 + gate) / 2).unsqueeze(-1))
        return torch.lerp(old, new, gate.unsqueeze(-1))


class MemoryLayer(nn.Module):
    def __init__(self, config: RxTConfig):
        super().__init__()
        self.kind = config.memory_attention
        heads = (
            config.memory_query_heads or config.query_heads,
            config.memory_kv_heads or config.kv_heads,
        )
        self.memory_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.encoded_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = CrossAttention(config.width, config.head_dim, *heads)
        self.gate = ResidualGate(config)
        if self.kind != "simple":
            self.slot_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
            self.slot_attention = CrossAttention(config.width, config.head_dim, *heads)
            self.slot_gate = ResidualGate(config)
        if self.kind == "gated_self_interlayer":
            self.mixture_gate = ResidualGate(config)

    def forward(
        self,
        slots: Tensor,
        layer_mean: Tensor | None,
        encoded: Tensor,
        rope: Tensor,
        unseen: Tensor,
    ) -> Tensor:
        """slots [batch, slots, width], encoded [batch, tokens, width], unseen: as `look` takes a
        mask → new slots."""
        if self.kind != "simple":
            normed = self.slot_norm(slots)
            if self.kind == "self":
                seen = normed
            elif self.kind == "interlayer":
                seen = layer_mean
            else:
                seen = self.mixture_gate(normed, layer_mean)
            slots = self.slot_gate(slots, self.slot_attention.between(normed, seen))
        return self.gate(
            slots,
            self.attention.between(
                self.memory_norm(slots), self.encoded_norm(encoded), unseen, rope
            ),
        )


class MemoryAttention(nn.Module):
    def __init__(self, config: RxTConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(MemoryLayer(config) for _ in range(config.layers))
        self.reads_mean = config.memory_attention in ("interlayer", "gated_self_interlayer")
        if self.reads_mean:
            self.mean_norm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def forward(self, memory: Tensor, encoded: Tensor, mask: Tensor) -> Tensor:
        """memory [batch, layers, slots, width], encoded [batch, layers, tokens, width], mask bool
        [batch, tokens], right-padded → new memory."""
        rope = rope_table(
            self.config.positions, self.config.head_dim, self.config.rope_base, memory.device
        )[: encoded.shape[2]]
        unseen = added_mask(mask, memory.dtype)[:, None, None]
        mean = self.mean_norm(memory.mean(1)) if self.reads_mean else None
        return torch.stack(
            [
                layer(memory[:, i], mean, encoded[:, i], rope, unseen)
                for i, layer in enumerate(self.layers)
            ],
            dim=1,
        )


def as_memory(encoded: Tensor, mask: Tensor, slots: int) -> Tensor:
    """An encoded interaction in the shape of memory: [batch, layers, tokens, width] → [batch,
    layers, slots, width].

    Slot s holds the mean of the real tokens in its share [s·n/slots, (s+1)·n/slots) of the n real
    tokens, rounded outwards: adaptive average pooling. With as many tokens as slots it is the
    identity, with fewer a token fills several slots. This is what the decoder reads in joint
    pre-training and what memory pre-training takes as the label of new information, so slots and
    tokens need not agree.
    """
    length = mask.sum(-1, keepdim=True)
    slot = torch.arange(slots, device=encoded.device)
    start = slot * length // slots
    end = -(-(slot + 1) * length // slots)
    token = torch.arange(encoded.shape[2], device=encoded.device)
    share = ((token >= start[..., None]) & (token < end[..., None])).to(encoded.dtype)
    share = share / share.sum(-1, keepdim=True)
    return torch.einsum("bst,bltw->blsw", share, encoded)
