"""Float32 where matrix products are computed in a shorter type (autocast)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def exact(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it is: logits and values before anything is summed over
    them. A log-probability of bfloat16 is off by whole percents."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A block that computes in the types of its tensors. x: any of them."""
    if not torch.is_autocast_enabled(x.device.type):
        return nullcontext()  # decoding must not wait for what it does not need
    return torch.autocast(x.device.type, enabled=False)
