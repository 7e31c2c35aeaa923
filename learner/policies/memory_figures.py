"""Measures of a short-term memory while conversations are written to it: how much a write replaces,
and how much memory holds."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.unroll import ConversationBatch
from common.telemetry.metrics import Metrics

KEPT = 1e-3
"""Change of a slot, relative to its norm, below which a write left it as it was."""


@torch.no_grad()
def record_memory(
    model: ReactiveTransformer, batch: ConversationBatch, initial: Tensor, metrics: Metrics
) -> Tensor:
    """Record openness of gates and slots kept over all writes of a batch, and norm and effective
    rank of memory after 1, 2, 4, 8 … of them. Returns the memory that each conversation ends with,
    as `initial`.

    initial: [conversations, layers, slots, width], in the order of the conversations handed to
    `collate`. Nothing is decoded.
    """
    encoded = model.encode(batch.written, batch.written_mask)
    order = list(batch.order)
    memory, last = initial[order], torch.empty_like(initial)
    starts = itertools.accumulate(batch.active, initial=0)
    for writes, (start, active) in enumerate(zip(starts, batch.active, strict=False), start=1):
        by = batch.written_by[start : start + active]
        shares: list[Tensor] = []
        old = memory[:active]
        memory = model.remember(old, encoded[by], batch.written_mask[by], shares)
        last[order[:active]] = memory
        _record_write(old, memory, shares, metrics)
        if writes & (writes - 1) == 0:
            _record_state(memory, writes, metrics)
    return last


def drift(played: Tensor, computed: Tensor) -> Tensor:
    """Distance of two memories [..., layers, slots, width], relative to the norm of the first:
    [...]."""
    distance = (played - computed).flatten(-3).norm(dim=-1)
    return distance / played.flatten(-3).norm(dim=-1)


def effective_rank(matrices: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of each matrix [..., rows, columns]:
    [...] (Roy and Vetterli 2007, "The effective rank")."""
    values = torch.linalg.svdvals(matrices.float())
    shares = values / values.sum(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum(-1).exp()


def slots_kept(old: Tensor, new: Tensor) -> Tensor:
    """Whether a write left each slot as it was: bool, old and new without their last dimension."""
    return (new - old).norm(dim=-1) < KEPT * old.norm(dim=-1)


def _record_write(old: Tensor, new: Tensor, shares: list[Tensor], metrics: Metrics) -> None:
    """shares: [batch, slots, width] of each layer, as `MemoryAttention.forward` collects them."""
    kept = slots_kept(old, new)
    means = torch.stack([kept.float().mean(), *(share.mean() for share in shares)]).tolist()
    metrics.record("memory/slots_kept", means[0], weight=kept.numel())
    for layer, share in enumerate(means[1:]):
        metrics.record("memory/openness", share, weight=len(old), layer=layer)


def _record_state(memory: Tensor, writes: int, metrics: Metrics) -> None:
    norm = memory.flatten(2).norm(dim=-1)
    norm_mean, rank = torch.stack([norm.mean(), effective_rank(memory).mean()]).tolist()
    metrics.record("memory/norm", norm_mean, weight=norm.numel(), writes=writes)
    metrics.record("memory/effective_rank", rank, weight=norm.numel(), writes=writes)
