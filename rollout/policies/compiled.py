"""The decoder as compiled kernels, for float32 on CPUs: what CUDA graphs are on a GPU, a step without the cost of its calls.

It computes what `Decoder` computes (common/models/decoder.py), from a copy of its weights that is arranged for that (`kernels.pack`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from common.models import kernels
from common.models.decoder import Decoder, DecoderLayer
from common.models.feed_forward import FeedForward
from common.models.kernels import AttentionWeights, Cache, FeedForwardWeights, Packed, Places, pack
from rollout.policies.cache import KeyValues


class CompiledDecoder:
    """For tokens of any rows at any positions, steps and prompts alike, without padding: each looks at its row's tokens up to its own,
    and at what its row remembers.

    past, memory: by dimension (`KeyValues`), one row each for what `rows` counts; `past` is written. Tokens given are a multiple of `ROWS`
    (common/models/rows.py); those past len(rows) are computed along and see nothing.
    """

    def __init__(self, decoder: Decoder, past: KeyValues, memory: KeyValues, rope: Tensor):
        self._decoder, self._past, self._memory = decoder, past, memory
        self._rope = torch.view_as_real(rope).numpy()
        self._eps = np.float32(decoder.config.norm_eps)
        self.refresh()

    def refresh(self) -> None:
        """Take up the decoder's weights as they are now."""
        decoder = self._decoder
        self._layers = [_Layer(layer, self._past.layer(i), self._memory.layer(i)) for i, layer in enumerate(decoder.layers)]
        self._head_norm, self._head = _array(decoder.head_norm.weight), _pack(decoder.head)

    def hidden(self, embedded: Tensor, rows: np.ndarray, positions: np.ndarray) -> Tensor:
        """embedded [tokens, width] → hidden states of the same shape, in its place. rows, positions: int64 [at most tokens], tokens of one
        row in order."""
        places = Places(self._rope, rows, positions)
        for layer in self._layers:
            layer.attend(embedded, places)
            layer.feed_forward(embedded)
        return embedded

    def fill(self, embedded: Tensor, rows: np.ndarray, positions: np.ndarray) -> None:
        """As `hidden`, for the keys and values that it leaves."""
        places = Places(self._rope, rows, positions)
        for layer in self._layers[:-1]:
            layer.attend(embedded, places)
            layer.feed_forward(embedded)
        self._layers[-1].attend(embedded, places)

    def logits(self, hidden: Tensor) -> Tensor:
        """[tokens, width] → [tokens, vocabulary]."""
        out = hidden.new_empty(len(hidden), len(self._head.bias))
        kernels.logits(hidden.numpy(), self._head_norm, self._head, self._eps, out.numpy())
        return out[:, : self._decoder.config.vocab_size]


class _Layer:
    def __init__(self, layer: nn.Module, past: Cache, memory: Cache):
        assert isinstance(layer, DecoderLayer)
        own, cross = layer.attention, layer.cross_attention
        self._own = AttentionWeights(_array(layer.attention_norm.weight), pack(own.input.weight), _pack(own.output))
        self._cross = AttentionWeights(_array(layer.cross_norm.weight), pack(cross.query_weight), _pack(cross.output))
        self._past, self._memory = past, memory
        self._eps = np.float32(layer.attention_norm.eps)
        self._module = layer
        self._feed_forward: FeedForwardWeights | None = None
        if isinstance(layer.feed_forward, FeedForward):
            norm, up, down = layer.feed_forward_norm, layer.feed_forward.up, layer.feed_forward.down
            self._feed_forward = FeedForwardWeights(_array(norm.weight), _pack(up), _pack(down))

    def attend(self, x: Tensor, places: Places) -> None:
        kernels.attend(x.numpy(), self._own, self._past, self._cross, self._memory, self._eps, places)

    def feed_forward(self, x: Tensor) -> None:
        if self._feed_forward is not None:
            kernels.feed_forward(x.numpy(), self._feed_forward, self._eps)
        else:
            # Which experts a token takes is for the module to say.
            x += self._module.feed_forward(self._module.feed_forward_norm(x))


def _pack(linear: nn.Linear) -> Packed:
    return pack(linear.weight, linear.bias)


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().numpy()
