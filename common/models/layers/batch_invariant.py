"""Batch-invariant matrix products, attention and element-wise operations on CPUs.

A sampled token is where a number falls in a running sum: one bit can change it, and with it all
that follows. Three things round by the company a row is in, and are kept from it here. Matrix
products of few rows or columns take another path in BLAS: no side is shorter than `ROWS`. Attention
sums over keys in vectors and rounds what is left over otherwise: tokens are padded to multiples of
`TOKENS`. Elementwise functions compute the end of a tensor by other code than the rest: `by_rows`
has them begin anew with each row. (GPU libraries choose among many kernels by shape; results there
agree to rounding only.)
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# oneDNN makes code for each shape it meets (half a millisecond) and keeps that of the last 1024;
# slots that end in all kinds of groups make more shapes than that. Read once, when the first
# product is computed.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")

ROWS = 8
TOKENS = 16
_ONEDNN = (
    torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
)
_LARGE = 2**13
"""Elements of a weight from which on oneDNN is faster than BLAS on the whole, its 10 µs a call
included."""


def round_up(count: int, block: int) -> int:
    return -(-count // block) * block


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, faster where no gradient is asked for. x: [..., features], at least `ROWS` rows
    in all."""
    if (
        weight.numel() >= _LARGE
        and not torch.is_grad_enabled()
        and x.dtype == torch.float32
        and x.is_cpu
        and _ONEDNN
        and not torch.is_autocast_enabled("cpu")
    ):
        # What torch.compile makes of a linear layer. The BLAS in torch's wheels uses half of AMD's
        # AVX-512: 110 against 250 GFLOP/s a core. Where there is no more than AVX2 it is the faster
        # one: its calls are shorter by 20 µs, which is what a small product takes. Which of the two
        # it is must not depend on the number of rows, as they may round differently.
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class NarrowLinear(nn.Linear):
    """`nn.Linear` by `narrow_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return narrow_linear(x, self.weight, self.bias)


def narrow_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` of x [rows, features] where any side may be short."""
    (rows, features), outputs = x.shape, weight.shape[0]
    row, feature, output = (max(0, ROWS - side) for side in (rows, features, outputs))
    if row or feature or output:
        x, weight = F.pad(x, (0, feature, 0, row)), F.pad(weight, (0, feature, 0, output))
        bias = None if bias is None else F.pad(bias, (0, output))
    return linear(x, weight, bias)[:rows, :outputs]


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An elementwise function of x [rows, features]."""
    # Rows that do not follow each other without a gap cannot be taken for one long row.
    return function(F.pad(x, (0, 1))[..., :-1])
