"""Operations of PyTorch that compiled loops compute where they can: float32 on CPUs where no
gradient is asked for (`usable`)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from common.models.kernels import elementary, sampling


def usable(x: Tensor) -> bool:
    """Whether kernels may compute what is asked of x."""
    return x.dtype == torch.float32 and x.is_cpu and not torch.is_grad_enabled()


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        if not usable(x):
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        out = torch.empty_like(rows)
        elementary.rms_norm(
            rows.numpy(), self.weight.detach().numpy(), np.float32(self.eps), out.numpy()
        )
        return out.view(x.shape)


def swiglu(x: Tensor) -> Tensor:
    """value · silu(gate) of x [..., 2 · width] = (value, gate) → [..., width] (Shazeer 2020, arXiv
    2002.05202)."""
    if not usable(x):
        value, gate = x.chunk(2, dim=-1)
        return value * nn.functional.silu(gate)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    out = rows.new_empty(len(rows), x.shape[-1] // 2)
    elementary.swiglu(rows.numpy(), out.numpy())
    return out.view(*x.shape[:-1], -1)


def mean_of_sum(x: Tensor, y: Tensor) -> Tensor:
    """(x + y).mean(-1) of x, y [..., width]."""
    if not usable(x):
        return (x + y).mean(-1)
    out = torch.empty(x.shape[:-1])
    width = x.shape[-1]
    elementary.mean_of_sum(
        x.reshape(-1, width).contiguous().numpy(),
        y.reshape(-1, width).contiguous().numpy(),
        out.view(-1).numpy(),
    )
    return out


def draw(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of each row's cumulative distribution at its uniform: tokens int64 [rows], and
    their log-probs float32 [rows].

    logits [rows, vocabulary], `usable`; uniforms float64 [rows] in [0, 1). A token of weight 0 is
    never drawn. A row that is not finite gets a token that means nothing and a log-prob that is not
    finite.
    """
    tokens, log_probs = torch.empty(len(logits), dtype=torch.int64), torch.empty(len(logits))
    sampling.draw(
        logits.contiguous().numpy(),
        uniforms.contiguous().numpy(),
        tokens.numpy(),
        log_probs.numpy(),
    )
    return tokens, log_probs


def log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probs float32 [rows] of tokens int64 [rows] under logits [rows, vocabulary], `usable`."""
    out = torch.empty(len(logits))
    sampling.log_probs(logits.contiguous().numpy(), tokens.contiguous().numpy(), out.numpy())
    return out
