"""Copies of a model's parameters, arranged in the order in which kernels use them."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from common.models.layers.attention import SelfAttention
from common.models.layers.feed_forward import FeedForward
from rollout.policies.reactive.cpu.layers import FeedForwardWeights
from rollout.policies.reactive.cpu.products import Packed, pack


def pack_feed_forward(norm: nn.RMSNorm, layer: FeedForward) -> FeedForwardWeights:
    return FeedForwardWeights(copy_of(norm.weight), pack_linear(layer.up), pack_linear(layer.down))


def pack_self_attention(attention: SelfAttention) -> tuple[Packed, Packed]:
    """Its input projection as two: to queries, and to keys and values."""
    queries = attention.query_heads * attention.head_dim
    parts = np.split(as_array(attention.input.weight), [queries])
    return pack(parts[0]), pack(parts[1])


def pairs_of(rope: Tensor) -> np.ndarray:
    """`rope_table` [positions, 2, head_dim] → cosine and sine of each pair, [positions,
    head_dim / 2, 2]."""
    return np.stack((rope[:, 0, 1::2].numpy(), rope[:, 1, 1::2].numpy()), -1)


def pack_linear(linear: nn.Linear) -> Packed:
    return pack(as_array(linear.weight), None if linear.bias is None else as_array(linear.bias))


def as_array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().numpy()


def copy_of(parameter: Tensor) -> np.ndarray:
    return as_array(parameter).copy()
