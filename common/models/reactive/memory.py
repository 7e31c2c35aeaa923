"""Memory attention: rewrites the short-term memory from one encoded interaction.

Slots ask, tokens answer: per layer, queries come from the slots and keys and values from the same
layer's encoding, with positions on the keys only. Before that, a variant may let slots look at each
other (`self`), at the mean over layers (`interlayer`), or at a gated mixture of both
(`gated_self_interlayer`). Means are of the memory as it came in, so layers do not depend on each
other's order.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.layers.attention import CrossAttention, added_mask, rope_table
from common.models.layers.batch_invariant import NarrowLinear, by_rows
from common.models.layers.exact import no_autocast
from common.models.reactive.config import LAST_INTERACTION, RxTConfig


class ResidualGate(nn.Module):
    """Mixes old and new slots (RxT paper, arXiv 2510.03561: residual gates of the memory
    attention).

    none: old + new. Otherwise g = activation(pre) and sigmoid: g·new + (1-g)·old; tanh: (1+g)·new +
    (1-g)·old. pre is a parameter (static), a parameter times the slot's status (elementwise), or a
    linear map of all slots' statuses (linear); status is the mean over width of old + new.

    per_number is no gate of the paper: pre is a linear map of a slot's old and new contents
    together, one for each number of the slot. A mean over width hides what is written from a gate,
    which then keeps about half of everything.

    stretch s makes a sigmoid g = clamp((1 + 2s)·sigmoid(pre) - s, 0, 1), so that a gate can be shut
    (hard concrete gates: Louizos et al. 2018, arXiv 1712.01312).

    delta is no gate: a slot [width] is a matrix M [heads, head_dim], an associative memory that a
    key k [heads] of length 1 reads as kᵀM. A linear map of the new contents gives k, a value v
    [head_dim], divided by its root mean square, and a strength g. The slot becomes
    M + g·k(v - kᵀM)ᵀ, the delta rule of fast weights (Schlag et al. 2021, arXiv 2102.11174, section
    4.2): what other keys read, at right angles to k, stays as it is. A slot whose root mean square
    is above 1 afterwards is divided by it, so that memory is bounded.
    """

    def __init__(self, config: RxTConfig):
        super().__init__()
        self.kind, self.activation, self.initial = (
            config.residual_gate,
            config.gate_activation,
            config.gate_initial,
        )
        gates = config.slots if config.gate_per_slot else 1
        self.per_slot, self.slots, self.stretch = (
            config.gate_per_slot,
            config.slots,
            config.gate_stretch,
        )
        if self.kind in ("static", "elementwise"):
            self.weight = nn.Parameter(torch.empty(gates))
        elif self.kind == "linear":
            self.linear = NarrowLinear(config.slots, gates)
        elif self.kind == "per_number":
            self.linear = NarrowLinear(2 * config.width, config.width)
        elif self.kind == "delta":
            self.parts = (config.heads, config.head_dim, 1)
            self.eps = config.norm_eps
            self.linear = NarrowLinear(config.width, sum(self.parts))

    def forward(self, old: Tensor, new: Tensor, shares: list[Tensor] | None = None) -> Tensor:
        """old, new: [batch, slots, width]. shares, where given, collects the share of what is new,
        in the shape of old."""
        if self.kind == "none":
            return old + new
        new = new.to(old.dtype)  # memory is carried on: it stays as exact as it is
        if self.kind == "delta":
            return self._delta(old, new, shares)
        gate = by_rows(
            torch.tanh if self.activation == "tanh" else torch.sigmoid,
            self._before(old, new).to(old.dtype),
        )
        if self.activation == "tanh":
            share = (1 + gate) / 2
        else:
            share = self._stretched(gate)
        if self.kind != "per_number":
            share = share.unsqueeze(-1)
        if shares is not None:
            shares.append(share.expand_as(old))
        mixed = torch.lerp(old, new, share)
        return 2 * mixed if self.activation == "tanh" else mixed

    def _stretched(self, gate: Tensor) -> Tensor:
        if not self.stretch:
            return gate
        return torch.clamp((1 + 2 * self.stretch) * gate - self.stretch, 0, 1)

    def _delta(self, old: Tensor, new: Tensor, shares: list[Tensor] | None) -> Tensor:
        """As `forward`, by the delta rule. The share of what is new is that of the rows of M."""
        given = self.linear(new.flatten(0, 1)).to(old.dtype)
        key, value, strength = given.unflatten(0, old.shape[:2]).split(self.parts, -1)
        key = F.normalize(key, dim=-1, eps=self.eps).unsqueeze(-1)
        value = F.rms_norm(value, value.shape[-1:], eps=self.eps)
        strength = self._stretched(by_rows(torch.sigmoid, strength.squeeze(-1)))[..., None, None]
        rows = old.unflatten(-1, self.parts[:2])
        held = (key * rows).sum(-2)
        if shares is not None:
            shares.append((strength * key.square()).expand_as(rows).flatten(-2))
        written = (rows + strength * key * (value - held).unsqueeze(-2)).flatten(-2)
        return written * written.square().mean(-1, keepdim=True).clamp(min=1).rsqrt()

    def _before(self, old: Tensor, new: Tensor) -> Tensor:
        """The pre-activation: [batch, slots, width] per number, else without width."""
        if self.kind == "per_number":
            return self.linear(torch.cat([old, new], -1).flatten(0, 1)).view_as(old)
        if self.kind == "static":
            return self.weight
        status = (old + new).mean(-1)
        if self.kind == "linear":
            return self.linear(status)
        return self.weight * (status if self.per_slot else status.mean(-1, keepdim=True))


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

    def prepare(self, encoded: Tensor, rope: Tensor) -> Tensor:
        """encoded [batch, tokens, width] → keys and values [batch, 2, kv_heads, tokens,
        head_dim]."""
        return torch.stack(self.attention.keys_values(self.encoded_norm(encoded), rope), 1)

    def forward(
        self,
        slots: Tensor,
        layer_mean: Tensor | None,
        keys_values: Tensor,
        unseen: Tensor,
        shares: list[Tensor] | None = None,
    ) -> Tensor:
        """slots [batch, slots, width], keys_values: as `prepare` makes them, unseen: as `look`
        takes a mask → new slots. shares: as `ResidualGate.forward` has it, of what tokens write."""
        if self.kind != "simple":
            normed = self.slot_norm(slots)
            if self.kind == "self":
                seen = normed
            elif self.kind == "interlayer":
                seen = layer_mean
            else:
                seen = self.mixture_gate(normed, layer_mean)
            slots = self.slot_gate(slots, self.slot_attention.between(normed, seen))
        queries = self.attention.queries(self.memory_norm(slots))
        keys, values = keys_values.unbind(1)
        return self.gate(slots, self.attention.attend(queries, keys, values, unseen), shares)


class MemoryAttention(nn.Module):
    def __init__(self, config: RxTConfig):
        super().__init__()
        self.config = config
        self.replaces = config.memory_attention == LAST_INTERACTION
        layers = 0 if self.replaces else config.layers
        self.layers = nn.ModuleList(MemoryLayer(config) for _ in range(layers))
        self.reads_mean = config.memory_attention in ("interlayer", "gated_self_interlayer")
        if self.reads_mean:
            self.mean_norm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def forward(
        self,
        memory: Tensor,
        encoded: Tensor,
        mask: Tensor,
        shares: list[Tensor] | None = None,
    ) -> Tensor:
        """memory [batch, layers, slots, width], encoded [batch, layers, tokens, width], mask bool
        [batch, tokens], right-padded → new memory. shares, where given, collects of each layer the
        share of memory that the interaction replaces, [batch, slots, width]; nothing where no gate
        decides it."""
        return self.write(memory, self.prepare(encoded), mask, shares)

    def prepare(self, encoded: Tensor) -> Tensor:
        """Encoded interactions as `write` takes them, the same for every memory: keys and values
        [batch, layers, 2, kv_heads, tokens, head_dim], or where an interaction replaces memory,
        itself. Batch comes first and tokens last but one."""
        if self.replaces:
            return encoded
        rope = rope_table(
            self.config.positions, self.config.head_dim, self.config.rope_base, encoded.device
        )[: encoded.shape[2]]
        layers = cast(list[MemoryLayer], list(self.layers))
        prepared = [layer.prepare(encoded[:, i], rope) for i, layer in enumerate(layers)]
        return torch.stack(prepared, dim=1)

    def write(
        self, memory: Tensor, prepared: Tensor, mask: Tensor, shares: list[Tensor] | None = None
    ) -> Tensor:
        """`forward` of what `prepare` made."""
        if self.replaces:
            return as_memory(prepared, mask, memory.shape[2])
        unseen = added_mask(mask, memory.dtype)[:, None, None]
        mean = self.mean_norm(memory.mean(1)) if self.reads_mean else None
        return torch.stack(
            [
                layer(memory[:, i], mean, prepared[:, i], unseen, shares)
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
    with no_autocast(encoded):
        return torch.einsum("bst,bltw->blsw", share, encoded)
