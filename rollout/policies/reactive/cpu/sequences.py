"""Attention of whole sequences to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rollout.policies.reactive.cpu.attention import rotate
from rollout.policies.reactive.cpu.compiling import kernel
from rollout.policies.reactive.cpu.elementary import (
    LN_2_HIGH,
    LN_2_LOW,
    LOG2_E,
    ONE,
    SMALLEST,
    TAYLOR,
    ZERO,
)
from rollout.policies.reactive.cpu.products import (
    FLOAT,
    INTEGER,
    PANEL,
    arrays,
    everywhere,
    multiply_add,
    place,
    row_sums,
    tile,
)


class Spans(NamedTuple):
    """Sequences that stand one after another in rows: of each, its first row and the one past its
    last, int64 [sequences]."""

    starts: np.ndarray
    stops: np.ndarray


class Rows(NamedTuple):
    """Rows `start` to `stop` - 1 of x [rows, features]."""

    x: np.ndarray
    start: int
    stop: int


class Heads(NamedTuple):
    query: int
    kv: int
    width: int


@kernel
def rotate_rows(x: np.ndarray, heads: int, rope: np.ndarray, spans: Spans) -> None:
    """Rotate the first heads of each row by its place in its sequence, in place."""
    stride, width = x.shape[1], 2 * rope.shape[1]
    for s in range(len(spans.starts)):
        for r in range(spans.starts[s], spans.stops[s]):
            for head in range(heads):
                here = r * stride + head * width
                rotate(x, here, rope, r - spans.starts[s], x, here, ONE)


def _exp(builder: Any, x: Any) -> Any:
    """`exp` of PANEL numbers that are at most 0, as instructions."""

    def number(value: Any) -> Any:
        return ir.Constant(FLOAT, [float(value)] * PANEL)

    def integer(value: int) -> Any:
        return ir.Constant(INTEGER, [value] * PANEL)

    floor = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(FLOAT, [FLOAT]), f"llvm.floor.v{PANEL}f32"
    )
    small = builder.fcmp_ordered("<", x, number(SMALLEST))
    bounded = builder.select(small, number(SMALLEST), x)
    n = builder.call(floor, [multiply_add(builder, bounded, number(LOG2_E), number(0.5))])
    r = multiply_add(builder, n, number(-LN_2_HIGH), bounded)
    r = multiply_add(builder, n, number(-LN_2_LOW), r)
    series = number(TAYLOR[-1])
    for coefficient in TAYLOR[-2::-1]:
        series = multiply_add(builder, r, series, number(coefficient))
    # What is not a number has no integer, not even a wrong one; `series` keeps it.
    whole = builder.fptosi(builder.select(builder.fcmp_ordered("ord", n, n), n, number(0)), INTEGER)
    power = builder.shl(builder.add(whole, integer(127)), integer(23))
    return builder.select(small, number(0), builder.fmul(series, builder.bitcast(power, FLOAT)))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _over_all(builder: Any, combined: Any, x: Any) -> Any:
    """PANEL numbers combined into one, which is everywhere: neighbours first, then pairs of them,
    and so on."""
    distance = 1
    while distance < PANEL:
        others = builder.shuffle_vector(
            x, FLOAT(ir.Undefined), ir.Constant(INTEGER, [i ^ distance for i in range(PANEL)])
        )
        x, distance = combined(builder, x, others), 2 * distance
    return x


@intrinsic
def _softmax(typing_context: Any, scores: Any, pitch: Any, shares: Any) -> Any:
    """e^(score - largest) of each of four rows of `pitch` scores, a multiple of PANEL, in place,
    and 1 / total of each: shares [4].

    Written as instructions, because a compiler makes no vectors of loops as short as these.
    """
    index = ir.IntType(64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        scores, pitch, shares = arrays(context, builder, signature, arguments)
        rows = [builder.mul(pitch, index(r)) for r in range(4)]
        panels = builder.sdiv(pitch, index(PANEL))

        def here(row: Any, panel: Any) -> Any:
            return place(builder, scores, builder.add(row, builder.mul(panel, index(PANEL))))

        tops = [
            cgutils.alloca_once_value(builder, builder.load(here(row, index(0)), align=4))
            for row in rows
        ]
        with cgutils.for_range_slice(builder, index(1), panels, index(1)) as (panel, _):
            for row, top in zip(rows, tops, strict=True):
                builder.store(
                    _larger(builder, builder.load(here(row, panel), align=4), builder.load(top)),
                    top,
                )
        highest = [_over_all(builder, _larger, builder.load(top)) for top in tops]
        totals = [
            cgutils.alloca_once_value(builder, ir.Constant(FLOAT, [0.0] * PANEL)) for _ in rows
        ]
        with cgutils.for_range(builder, panels) as loop:
            for row, top, total in zip(rows, highest, totals, strict=True):
                weight = _exp(
                    builder, builder.fsub(builder.load(here(row, loop.index), align=4), top)
                )
                builder.store(weight, here(row, loop.index), align=4)
                builder.store(builder.fadd(builder.load(total), weight), total)
        for r, total in enumerate(totals):
            added = _over_all(
                builder, lambda builder, a, b: builder.fadd(a, b), builder.load(total)
            )
            share = builder.fdiv(
                ir.FloatType()(1.0), builder.extract_element(added, ir.IntType(32)(0))
            )
            builder.store(share, builder.gep(shares.data, [index(r)]))
        return context.get_dummy_value()

    return types.void(scores, types.intp, shares), generate


@intrinsic
def _weigh(
    typing_context: Any, weights: Any, pitch: Any, values: Any, count: Any, shares: Any, out: Any,
    at: Any, stride: Any, columns: Any
) -> Any:  # fmt: skip
    """Four rows of weights, `pitch` numbers apart, times the first `count` rows of values [rows,
    PANEL], times each row's share: the first `columns` of each to out, `stride` numbers apart from
    flat index `at` on."""
    index = ir.IntType(64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        weights, pitch, values, count, shares, out, at, stride, columns = arrays(
            context, builder, signature, arguments
        )
        begin, scaled = ir.Constant(FLOAT, [0.0] * PANEL), []
        for r, total in enumerate(
            row_sums(builder, weights, index(0), pitch, values, count, begin)
        ):
            share = everywhere(builder, builder.load(builder.gep(shares.data, [index(r)])))
            scaled.append(builder.fmul(builder.load(total), share))
        starts = [builder.add(at, builder.mul(stride, index(r))) for r in range(4)]
        with builder.if_else(builder.icmp_signed(">=", columns, index(PANEL))) as (whole, part):
            with whole:
                for start, numbers in zip(starts, scaled, strict=True):
                    builder.store(numbers, place(builder, out, start), align=4)
            with part, cgutils.for_range(builder, columns) as loop:
                lane = builder.trunc(loop.index, ir.IntType(32))
                for start, numbers in zip(starts, scaled, strict=True):
                    builder.store(
                        builder.extract_element(numbers, lane),
                        builder.gep(out.data, [builder.add(start, loop.index)]),
                    )
        return context.get_dummy_value()

    return types.void(
        weights, types.intp, values, types.intp, shares, out, types.intp, types.intp, types.intp
    ), generate


@intrinsic
def _turn(
    typing_context: Any, x: Any, first: Any, stride: Any, most: Any, count: Any, scale: Any,
    out: Any, at: Any, pitch: Any
) -> Any:  # fmt: skip
    """scale · `count` numbers of each of PANEL rows of x, `stride` numbers apart from flat index
    `first` on, to as many rows of out, `pitch` numbers apart from flat index `at` on: what was a
    row is a column. Rows past number `most` are row `most` again.

    Written as instructions, because where a compiler sees this loop it scatters, which is slower
    than to move number by number.
    """
    index, lane = ir.IntType(64), ir.IntType(32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        x, first, stride, most, count, scale, out, at, pitch = arrays(
            context, builder, signature, arguments
        )
        starts = []
        for r in range(PANEL):
            row = builder.select(builder.icmp_signed("<", index(r), most), index(r), most)
            starts.append(builder.gep(x.data, [builder.add(first, builder.mul(stride, row))]))
        scales = everywhere(builder, scale)
        with cgutils.for_range(builder, count) as loop:
            numbers = FLOAT(ir.Undefined)
            for r, start in enumerate(starts):
                numbers = builder.insert_element(
                    numbers, builder.load(builder.gep(start, [loop.index])), lane(r)
                )
            there = place(builder, out, builder.add(at, builder.mul(loop.index, pitch)))
            builder.store(builder.fmul(numbers, scales), there, align=4)
        return context.get_dummy_value()

    return types.void(
        x,
        types.intp,
        types.intp,
        types.intp,
        types.intp,
        types.float32,
        out,
        types.intp,
        types.intp,
    ), generate


@kernel
def by_dimension(x: np.ndarray, column: int, out: np.ndarray) -> None:
    """out [heads, width, rows] = heads · width columns of x [at least rows, features] from `column`
    on."""
    heads, width, rows = out.shape
    stride, whole = x.shape[1], rows - rows % PANEL
    for first in range(0, whole, PANEL):
        _turn(x, first * stride + column, stride, PANEL, heads * width, ONE, out, first, rows)
    for head in range(heads):
        for d in range(width):
            for r in range(whole, rows):
                out[head, d, r] = x[r, column + head * width + d]


class Scratch(NamedTuple):
    """Scratch of `attend_sequence`, for keys and values of up to some length."""

    keys: np.ndarray
    """[panels of keys, width of a head, PANEL]."""
    values: np.ndarray
    """[panels of a head, keys, PANEL]."""
    unseen: np.ndarray
    """[keys]: what keeps a key that is none from being seen."""
    scores: np.ndarray
    """[4 · keys]."""
    shares: np.ndarray
    """[4]."""


_UNSEEN = np.float32(-np.inf)


@kernel
def scratch(heads: Heads, longest: int) -> Scratch:
    panels, parts = -(-longest // PANEL), -(-heads.width // PANEL)
    keys, values = (
        np.empty((panels, heads.width, PANEL), np.float32),
        np.zeros((parts, panels * PANEL, PANEL), np.float32),
    )
    unseen, scores = np.empty(panels * PANEL, np.float32), np.empty(4 * panels * PANEL, np.float32)
    return Scratch(keys, values, unseen, scores, np.empty(4, np.float32))


@kernel
def _arrange(asked: Rows, kv: int, heads: Heads, room: Scratch) -> None:
    """Copy the keys and values of key/value head `kv` to `room`, keys scaled by 1 / sqrt(width)."""
    x, width, count = asked.x, heads.width, asked.stop - asked.start
    scale = np.float32(1 / np.sqrt(width))
    for row in range(0, count, PANEL):
        first = (asked.start + row) * x.shape[1] + kv * width
        at = row * width
        _turn(x, first, x.shape[1], count - 1 - row, width, scale, room.keys, at, PANEL)
    for part in range(room.values.shape[0]):
        first = (heads.kv + kv) * width + part * PANEL
        for p in range(count):
            for d in range(min(PANEL, width - part * PANEL)):
                room.values[part, p, d] = x[asked.start + p, first + d]


@kernel
def _attend_four(
    queries: np.ndarray, start: int, head: int, count: int, room: Scratch, out: np.ndarray
) -> None:
    """Attention of query head `head` of four rows from row `start` on, to the `count` keys and
    values in `room`."""
    width, pitch = room.keys.shape[1], -(-count // PANEL) * PANEL
    stride, first = queries.shape[1], start * queries.shape[1] + head * width
    scores = room.scores
    for panel in range(pitch // PANEL):
        at = panel * PANEL
        tile(queries, first, stride, room.keys[panel], room.unseen, at, scores, at, pitch)
    _softmax(scores, pitch, room.shares)
    stride, first = out.shape[1], start * out.shape[1] + head * width
    for part in range(room.values.shape[0]):
        done, values = part * PANEL, room.values[part]
        at, columns = first + done, width - done
        _weigh(scores, pitch, values, count, room.shares, out, at, stride, columns)


@kernel
def attend_sequence(
    asking: Rows, asked: Rows, heads: Heads, out: np.ndarray, room: Scratch
) -> None:
    """Attention of rows of queries to rows of keys and values.

    asking.x and out [rows, at least query heads · width], asked.x [rows, at least 2 · kv heads ·
    width]; `room` for as many rows as are asked. Four queries are taken together, so that up to
    three rows past the last of both queries and out are read and written. No sum or vector depends
    on how many there are. Raises ValueError where arrays have not as many rows, or no row is asked.
    """
    count, share = asked.stop - asked.start, heads.query // heads.kv
    last = asking.start + -(-(asking.stop - asking.start) // 4) * 4
    if (
        last > asking.x.shape[0]
        or last > out.shape[0]
        or asked.stop > asked.x.shape[0]
        or count < 1
    ):
        raise ValueError(
            "attention of a sequence reads and writes more rows than there are, or none"
        )
    for p in range(-(-count // PANEL) * PANEL):
        room.unseen[p] = ZERO if p < count else _UNSEEN
    for kv in range(heads.kv):
        _arrange(asked, kv, heads, room)
        for head in range(kv * share, (kv + 1) * share):
            for start in range(asking.start, asking.stop, 4):
                _attend_four(asking.x, start, head, count, room, out)


@kernel
def attend_sequences(
    queries: np.ndarray,
    asking: Spans,
    keys_values: np.ndarray,
    asked: Spans,
    heads: Heads,
    out: np.ndarray,
) -> None:
    """`attend_sequence` for each asking sequence, to the asked one of the same number, whatever its
    length."""
    longest = 0
    for s in range(len(asked.starts)):
        longest = max(longest, asked.stops[s] - asked.starts[s])
    room = scratch(heads, longest)
    for s in range(len(asking.starts)):
        own = Rows(queries, asking.starts[s], asking.stops[s])
        others = Rows(keys_values, asked.starts[s], asked.stops[s])
        attend_sequence(own, others, heads, out, room)
