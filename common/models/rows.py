"""What keeps a row's result free of the batch it is in, bit for bit, on CPUs.

A sampled token is where a number falls in a running sum: one bit can change it, and with it all that follows. Three things round by
the company a row is in, and are kept from it here. Matrix products of few rows or columns take another path in BLAS: no side is
shorter than `ROWS`. Attention sums over keys in vectors and rounds what is left over otherwise: tokens are padded to multiples of
`TOKENS`. Elementwise functions compute the end of a tensor by other code than the rest: `by_rows` has them begin anew with each row.
(GPU libraries choose among many kernels by shape; results there agree to rounding only.)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

ROWS = 8
TOKENS = 16


def round_up(count: int, block: int) -> int:
    return -(-count // block) * block


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of x [rows, features] where any side may be short."""
    (rows, features), outputs = x.shape, weight.shape[0]
    row, feature, output = (max(0, ROWS - side) for side in (rows, features, outputs))
    if row or feature or output:
        x, weight = F.pad(x, (0, feature, 0, row)), F.pad(weight, (0, feature, 0, output))
        bias = None if bias is None else F.pad(bias, (0, output))
    return F.linear(x, weight, bias)[:rows, :outputs]


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An elementwise function of x [rows, features]."""
    # Rows that do not follow each other without a gap cannot be taken for one long row.
    return function(F.pad(x, (0, 1))[..., :-1])
