"""Copies of a model's parameters, arranged in the order in which kernels use them."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from common.models.layers.feed_forward import FeedForward
from rollout.policies.reactive.cpu.layers import FeedForwardWeights
from rollout.policies.reactive.cpu.products import Packed, pack


def pack_feed_forward(norm: nn.RMSNorm, layer: FeedForward) -> FeedForwardWeights:
    return FeedForwardWeights(copy_of(norm.weight), pack_linear(layer.up), pack_linear(layer.down))


def pack_linear(linear: nn.Linear) -> Packed:
    return pack(as_array(linear.weight), as_array(linear.bias))


def as_array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().numpy()


def copy_of(parameter: Tensor) -> np.ndarray:
    return as_array(parameter).copy()
