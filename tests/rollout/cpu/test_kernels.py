"""Kernels against PyTorch in double precision, and what they promise besides: rows that do not
touch each other, and NaN that shows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from common.models.layers.attention import rope_table, rotate
from common.models.layers.feed_forward import swiglu as plain_swiglu
from rollout.policies.reactive.cpu import attention, elementary, products, sequences
from rollout.policies.reactive.cpu.weights import pairs_of

CPU = torch.device("cpu")
COUNTS = (1, 3, 8, 21, 64)
"""Of what is summed over: below, at and between multiples of what fits into a vector."""


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def spread(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape) * scale


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    out = torch.empty_like(x)
    elementary.rms_norm(x.numpy(), weight.numpy(), np.float32(eps), out.numpy())
    return out


def swiglu(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(len(x), x.shape[1] // 2)
    elementary.swiglu(x.numpy(), out.numpy())
    return out


def test_exp_is_right_to_two_units_in_the_last_place() -> None:
    x = np.concatenate((np.linspace(-87, 88, 40001), np.linspace(-1, 1, 4001))).astype(np.float32)
    found = np.array([elementary.exp(each) for each in x], dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(found - exact) / np.spacing(exact.astype(np.float32))).max() <= 2
    ends = [elementary.exp(np.float32(each)) for each in (-np.inf, -88, 89, np.inf)]
    assert ends[:2] == [0, 0]
    assert ends[2] == ends[3] == elementary.exp(np.float32(88))
    assert np.isnan(elementary.exp(np.float32(np.nan)))


@pytest.mark.parametrize("width", COUNTS)
def test_rms_norm(width: int) -> None:
    weight, x = spread(width), spread(15, width)
    exact = F.rms_norm(x.double(), (width,), weight.double(), 1e-5)
    torch.testing.assert_close(norm(x, weight, 1e-5).double(), exact, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("width", COUNTS)
def test_swiglu(width: int) -> None:
    x = spread(12, 2 * width, scale=20)
    torch.testing.assert_close(swiglu(x).double(), plain_swiglu(x.double()), atol=1e-5, rtol=1e-6)


def test_the_mean_of_a_sum() -> None:
    x, y, out = spread(10, 21), spread(10, 21), torch.empty(10)
    elementary.mean_of_sum(x.numpy(), y.numpy(), out.numpy())
    torch.testing.assert_close(out.double(), (x.double() + y.double()).mean(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("features", COUNTS)
@pytest.mark.parametrize(("rows", "outputs"), [(4, 3), (8, 4), (16, 65), (72, 200)])
def test_a_linear_map(rows: int, features: int, outputs: int) -> None:
    x, weight, bias = spread(rows, features), spread(outputs, features), spread(outputs)
    for added in (None, bias):
        packed = products.pack(weight.numpy(), None if added is None else added.numpy())
        out = torch.full((rows, len(packed.bias)), torch.nan)
        products.linear(x.numpy(), packed, out.numpy())
        exact = F.linear(x.double(), weight.double(), None if added is None else added.double())
        torch.testing.assert_close(out[:, :outputs].double(), exact, atol=2e-5, rtol=0)
        assert not out[:, outputs:].any()


@pytest.mark.parametrize(("rows", "features", "outputs"), [(6, 8, 32), (8, 9, 32), (8, 8, 20)])
def test_a_linear_map_of_other_shapes_is_refused_before_anything_is_written(
    rows: int, features: int, outputs: int
) -> None:
    x, out = np.ones((rows, features), np.float32), np.zeros((rows, outputs), np.float32)
    with pytest.raises(ValueError, match="multiple of 4"):
        products.linear(x, products.pack(np.ones((20, 8), np.float32)), out)
    assert not out.any()


@pytest.mark.parametrize(
    ("query_heads", "kv_heads", "head_dim"), [(4, 4, 16), (4, 2, 8), (3, 1, 6), (2, 1, 20)]
)
def test_attention_to_the_past_and_to_memory(
    query_heads: int, kv_heads: int, head_dim: int
) -> None:
    """Prompts of several rows token by token, then one more token each, against causal attention
    over whole sequences."""
    lengths, slots, positions = {2: 7, 0: 1, 3: 20}, 13, 24
    table = rope_table(positions, head_dim, 10000.0, CPU)
    rope = pairs_of(table)
    past_keys, past_values = np.zeros((2, 4, kv_heads, head_dim, positions), np.float32)
    memory_keys, memory_values = (spread(4, kv_heads, head_dim, slots, scale=2) for _ in range(2))
    for row, length in lengths.items():
        x = spread(length, (query_heads + 2 * kv_heads) * head_dim, scale=2)
        queries, keys, values = (
            part.unflatten(-1, (-1, head_dim)).transpose(0, 1)[None].double()
            for part in x.split(
                [query_heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], -1
            )
        )
        queries, keys = (rotate(each.float(), table[:length]).double() for each in (queries, keys))
        exact = (
            F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)[
                0
            ]
            .transpose(0, 1)
            .flatten(1)
        )
        remembered = (each[row : row + 1].mT.double() for each in (memory_keys, memory_values))
        recalled = (
            F.scaled_dot_product_attention(queries, *remembered, enable_gqa=True)[0]
            .transpose(0, 1)
            .flatten(1)
        )
        seen, recall = np.zeros((2, length, query_heads * head_dim), np.float32)
        for part in (slice(0, length - 1), slice(length - 1, length)):
            places = np.full(length, row)[part], np.arange(length)[part]
            projected = x[part].numpy()
            attention.attend_past(projected, rope, *places, past_keys, past_values, seen[part])
            own = np.ascontiguousarray(projected[:, : query_heads * head_dim])
            attention.attend_memory(
                own, rope, *places, memory_keys.numpy(), memory_values.numpy(), recall[part]
            )
        torch.testing.assert_close(torch.from_numpy(seen).double(), exact, atol=3e-6, rtol=0)
        torch.testing.assert_close(torch.from_numpy(recall).double(), recalled, atol=3e-6, rtol=0)
    assert not past_keys[1].any(), "a row that nobody asked for was written to"
    assert not past_keys[:, :, :, max(lengths.values()) :].any()


@pytest.mark.parametrize(
    ("query_heads", "kv_heads", "head_dim"), [(4, 4, 16), (4, 2, 8), (3, 1, 6), (2, 1, 20)]
)
def test_attention_of_sequences_to_sequences(
    query_heads: int, kv_heads: int, head_dim: int
) -> None:
    asking, asked = np.array([5, 1, 16, 2, 7]), np.array([1, 16, 17, 40, 3])
    spans = [
        sequences.Spans(lengths.cumsum() - lengths, lengths.cumsum()) for lengths in (asking, asked)
    ]
    queries, keys_values = (
        spread(asking.sum() + 3, query_heads * head_dim, scale=2),
        spread(asked.sum(), 2 * kv_heads * head_dim, scale=2),
    )
    heads = sequences.Heads(query_heads, kv_heads, head_dim)

    def seen() -> torch.Tensor:
        out = torch.full_like(queries, torch.nan)
        sequences.attend_sequences(
            queries.numpy(), spans[0], keys_values.numpy(), spans[1], heads, out.numpy()
        )
        return out[: asking.sum()]

    def by_heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, head_dim)).transpose(0, 1)[None].double()

    parts = []
    for own, others in zip(queries.split([*asking, 3]), keys_values.split([*asked]), strict=False):
        keys, values = (by_heads(part) for part in others.chunk(2, -1))
        exact = F.scaled_dot_product_attention(by_heads(own), keys, values, enable_gqa=True)
        parts.append(exact[0].transpose(0, 1).flatten(1))
    whole = seen()
    torch.testing.assert_close(whole.double(), torch.cat(parts), atol=3e-6, rtol=0)
    key, value = 1, kv_heads * head_dim + 1
    for column, bad in ((key, torch.nan), (value, torch.nan), (value, torch.inf)):
        # Of the fourth, to which a shorter one follows.
        before, keys_values[44, column] = keys_values[44, column].item(), bad
        broken = seen()
        keys_values[44, column] = before
        assert not broken[22:24].isfinite().all()
        assert torch.equal(broken[:22], whole[:22])
        assert torch.equal(broken[24:], whole[24:])


def test_keys_that_are_none_are_not_seen_however_large_scores_are() -> None:
    """They fill a panel of sixteen, and whatever stands in them must not reach what the last key
    has."""
    queries, keys_values = torch.full((4, 4), 1e19), torch.zeros(3, 8)
    keys_values[:, 0], keys_values[:, 4] = torch.tensor([0, 0, 1e19]), torch.tensor([1.0, 2, 3])
    out, one = torch.zeros(4, 4), sequences.Spans(np.array([0]), np.array([3]))
    sequences.attend_sequences(
        queries.numpy(), one, keys_values.numpy(), one, sequences.Heads(1, 1, 4), out.numpy()
    )
    assert torch.equal(out[:3], torch.tensor([3.0, 0, 0, 0]).expand(3, 4))


@pytest.mark.parametrize(
    ("rows", "seen_rows", "asking", "asked"),
    [(4, 8, 6, 3), (8, 4, 6, 3), (4, 4, 3, 9), (4, 4, 3, 0)],
    ids=["queries", "out", "keys", "nothing to see"],
)
def test_attention_past_the_end_of_its_arrays_is_refused_before_anything_is_written(
    rows: int, seen_rows: int, asking: int, asked: int
) -> None:
    queries, keys_values, out = (
        np.ones((rows, 8), np.float32),
        np.ones((8, 16), np.float32),
        np.zeros((seen_rows, 8), np.float32),
    )
    spans = [sequences.Spans(np.array([0]), np.array([stop])) for stop in (asking, asked)]
    with pytest.raises(ValueError, match="more rows than there are, or none"):
        sequences.attend_sequences(
            queries, spans[0], keys_values, spans[1], sequences.Heads(2, 2, 4), out
        )
    assert not out.any()


@pytest.mark.parametrize("rows", [1, 16, 37])
def test_what_is_put_by_dimension(rows: int) -> None:
    x, out = spread(rows + 3, 40), torch.full((2, 6, rows), torch.nan)
    sequences.by_dimension(x.numpy(), 5, out.numpy())
    assert torch.equal(out, x[:rows, 5:17].T.unflatten(0, (2, 6)))


def test_a_row_that_is_not_finite_shows_and_disturbs_no_other() -> None:
    x = spread(4, 64)
    x[1, 3] = torch.nan
    for out in (norm(x, torch.ones(64), 1e-6), swiglu(x)):
        assert out[1].isnan().any()
        assert out[[0, 2, 3]].isfinite().all()


def test_a_row_is_computed_alike_in_any_company() -> None:
    x, weight = spread(70, 42, scale=5), spread(42)
    packed = products.pack(spread(50, 42).numpy(), spread(50).numpy())

    def mapped(of: torch.Tensor) -> torch.Tensor:
        """A multiple of four rows, the first of which are `of`."""
        out = torch.empty(-(-len(of) // 4) * 4, len(packed.bias))
        products.linear(F.pad(of, (0, 0, 0, len(out) - len(of))).numpy(), packed, out.numpy())
        return out[: len(of)]

    for rows in ([5], [69, 5, 6], list(range(5, 40))):
        assert torch.equal(norm(x[rows], weight, 1e-6), norm(x, weight, 1e-6)[rows])
        assert torch.equal(swiglu(x[rows]), swiglu(x)[rows])
        assert torch.equal(mapped(x[rows]), mapped(x)[rows])
