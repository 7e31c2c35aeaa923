"""Matrix products with weights that are arranged for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rollout.policies.reactive.cpu.compiling import kernel

PANEL = 16
"""Outputs that are computed together: as many as two registers of AVX2 hold, or one of AVX-512."""
CHUNK = 64
"""Rows that go through all weights together: as many as stay in the first levels of cache."""


class Packed(NamedTuple):
    """A linear map with its weights in the order in which they are used, padded with zeros to whole
    panels of outputs."""

    panels: np.ndarray
    """[panels, features, PANEL]."""
    bias: np.ndarray
    """[panels · PANEL]."""


def pack(weight: np.ndarray, bias: np.ndarray | None = None) -> Packed:
    """A copy of weight [outputs, features] and bias [outputs]."""
    outputs, features = weight.shape
    count = -(-outputs // PANEL)
    padded, added = (
        np.zeros((count * PANEL, features), np.float32),
        np.zeros(count * PANEL, np.float32),
    )
    padded[:outputs] = weight
    if bias is not None:
        added[:outputs] = bias
    return Packed(
        np.ascontiguousarray(padded.reshape(count, PANEL, features).swapaxes(1, 2)), added
    )


FLOAT, INTEGER = ir.VectorType(ir.FloatType(), PANEL), ir.VectorType(ir.IntType(32), PANEL)
"""A row of a panel, as instructions take it."""


def arrays(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> list[Any]:
    """The arguments of an intrinsic, with arrays opened."""
    return [
        context.make_array(kind)(context, builder, value)
        if isinstance(kind, types.Array)
        else value
        for kind, value in zip(signature.args, arguments, strict=True)
    ]


def place(builder: Any, array: Any, index: Any) -> Any:
    """Where the PANEL numbers from flat index `index` on are."""
    return builder.bitcast(builder.gep(array.data, [index]), FLOAT.as_pointer())


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, rounded once."""
    name, kind = f"llvm.fma.v{PANEL}f32", ir.FunctionType(FLOAT, [FLOAT] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def everywhere(builder: Any, number: Any) -> Any:
    """PANEL times the same number."""
    first = builder.insert_element(FLOAT(ir.Undefined), number, ir.IntType(32)(0))
    return builder.shuffle_vector(first, FLOAT(ir.Undefined), ir.Constant(INTEGER, [0] * PANEL))


_LINE = 16
"""Numbers in a line of cache."""


@intrinsic
def fetch(typing_context: Any, array: Any, start: Any, count: Any) -> Any:
    """Ask for `count` numbers of an array from flat index `start` on, so that they are in cache
    when they are needed. Changes nothing else.

    Hardware asks ahead by itself within a page of memory, and what one head of one row remembers is
    about a page.
    """
    index, number, byte = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        array, start, count = arrays(context, builder, signature, arguments)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        with cgutils.for_range(
            builder, builder.sdiv(builder.add(count, index(_LINE - 1)), index(_LINE))
        ) as loop:
            line = builder.gep(
                array.data, [builder.add(start, builder.mul(loop.index, index(_LINE)))]
            )
            # To be read, kept as long as may be, data.
            builder.call(ask, [builder.bitcast(line, byte), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


def row_sums(
    builder: Any, x: Any, first: Any, stride: Any, panel: Any, features: Any, begin: Any
) -> list[Any]:
    """Where the sums of four rows of x, `stride` numbers apart from flat index `first` on, times a
    panel are, which start from `begin`.

    Written as instructions, because a compiler keeps no array in registers, and the 4 × PANEL sums
    have to be there.
    """
    index = ir.IntType(64)
    sums = [cgutils.alloca_once_value(builder, begin) for _ in range(4)]
    starts = [
        builder.gep(x.data, [builder.add(first, builder.mul(stride, index(r)))]) for r in range(4)
    ]
    with cgutils.for_range(builder, features) as loop:
        weights = builder.load(
            place(builder, panel, builder.mul(loop.index, index(PANEL))), align=4
        )
        for start, total in zip(starts, sums, strict=True):
            feature = everywhere(builder, builder.load(builder.gep(start, [loop.index])))
            builder.store(multiply_add(builder, feature, weights, builder.load(total)), total)
    return sums


@intrinsic
def tile(
    typing_context: Any, x: Any, first: Any, stride: Any, panel: Any, bias: Any, column: Any,
    out: Any, at: Any, pitch: Any
) -> Any:  # fmt: skip
    """Four rows of x, `stride` numbers apart from flat index `first` on, times a panel [features,
    PANEL], plus `bias` from `column` on: to rows of out that are `pitch` numbers apart from flat
    index `at` on."""
    index = ir.IntType(64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        x, first, stride, panel, bias, column, out, at, pitch = arrays(
            context, builder, signature, arguments
        )
        begin = builder.load(place(builder, bias, column), align=4)
        for r, total in enumerate(
            row_sums(builder, x, first, stride, panel, builder.extract_value(panel.shape, 0), begin)
        ):
            there = builder.add(at, builder.mul(pitch, index(r)))
            builder.store(builder.load(total), place(builder, out, there), align=4)
        return context.get_dummy_value()

    return types.void(
        x, types.intp, types.intp, panel, bias, types.intp, out, types.intp, types.intp
    ), generate


@kernel
def linear(x: np.ndarray, weights: Packed, out: np.ndarray) -> None:
    """x · weightᵀ + bias. x [rows, features], rows a multiple of 4; out [rows, panels · PANEL], 0
    past the outputs. Raises ValueError where shapes are others.

    Where a product is this small, a library spends as long on its call and on arranging weights as
    on the product.
    """
    (rows, features), outputs = x.shape, out.shape[1]
    if (
        rows % 4
        or features != weights.panels.shape[1]
        or out.shape != (rows, weights.panels.shape[0] * PANEL)
    ):
        raise ValueError(
            "a linear map is given rows that are no multiple of 4, or features or outputs that "
            "are not its own"
        )
    for first in range(0, rows, CHUNK):
        for n in range(weights.panels.shape[0]):
            for r in range(first, min(rows, first + CHUNK), 4):
                tile(
                    x,
                    r * features,
                    features,
                    weights.panels[n],
                    weights.bias,
                    n * PANEL,
                    out,
                    r * outputs + n * PANEL,
                    outputs,
                )


@kernel
def linear_of(x: np.ndarray, weights: Packed) -> np.ndarray:
    out = np.empty((x.shape[0], weights.bias.shape[0]), np.float32)
    linear(x, weights, out)
    return out


@kernel
def add(x: np.ndarray, y: np.ndarray) -> None:
    """x [rows, width] += y [rows, at least width]."""
    for r in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[r, i] += y[r, i]
