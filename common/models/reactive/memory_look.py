"""Reading memory beside the policy: models that judge, and answer nothing, look at memory through
cross-attentions that start as the decoder's."""

from __future__ import annotations

from torch import Tensor, nn

from common.models.layers.attention import CrossAttention
from common.models.reactive.config import RxTConfig
from common.models.reactive.decoder import DecoderLayer
from common.models.reactive.model import ReactiveTransformer


class MemoryLook(nn.Module):
    """Attention of a layer of a reader to the same layer of memory."""

    def __init__(self, config: RxTConfig):
        super().__init__()
        heads = (
            config.cross_query_heads or config.query_heads,
            config.cross_kv_heads or config.kv_heads,
        )
        self.memory_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.cross_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.cross_attention = CrossAttention(config.width, config.head_dim, *heads)

    def forward(self, x: Tensor, rope: Tensor, memory: Tensor) -> Tensor:
        """x [batch, tokens, width], memory [batch, slots, width] → what to add to x."""
        keys, values = self.cross_attention.keys_values(self.memory_norm(memory))
        return self.cross_attention.attend(
            self.cross_attention.queries(self.cross_norm(x), rope), keys, values
        )


def start_as_decoder(looks: nn.ModuleList, policy: ReactiveTransformer) -> None:
    """Give the look of each layer the weights by which the policy's decoder reads that layer of
    memory."""
    for look, layer in zip(looks, policy.decoder.layers, strict=True):
        assert isinstance(look, MemoryLook)
        assert isinstance(layer, DecoderLayer)
        for name in ("memory_norm", "cross_norm", "cross_attention"):
            getattr(look, name).load_state_dict(getattr(layer, name).state_dict())
