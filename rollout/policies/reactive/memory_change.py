"""Change of each memory slot by a write, in the form in which an episode keeps it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COLUMNS = 64
"""Most numbers that are kept of one layer, so that an episode of a large memory stays small."""
_TINY = 1e-12


def slot_changes(before: Tensor, after: Tensor) -> Tensor:
    """Norm of each slot's change over its norm before, float32 [memories, layers, slots]: 0 where a
    slot was kept, about 1 where it was replaced. Of more than `COLUMNS` slots, means of neighbours.

    before, after: [memories, layers, slots, width]. Does not wait for the device.
    """
    change = torch.linalg.vector_norm((after - before).float(), dim=-1)
    shares = change / torch.linalg.vector_norm(before.float(), dim=-1).clamp(min=_TINY)
    return shares if shares.shape[-1] <= COLUMNS else F.adaptive_avg_pool1d(shares, COLUMNS)
