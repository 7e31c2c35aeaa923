"""The Reactive Transformer (Filipek 2025, arXiv 2510.03561): three functions of their arguments.

    encoded = model.encode(tokens, mask)
    memory  = model.remember(memory, encoded, mask)
    logits  = model.decode(tokens, memory)

Memory is a value, [batch, layers, slots, width]: it goes in and comes out, and nothing in here
holds it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.models.layers.feed_forward import MixtureOfExperts, Routing
from common.models.reactive.config import RxTConfig
from common.models.reactive.decoder import Decoder, Sequences
from common.models.reactive.encoder import Encoder
from common.models.reactive.memory import MemoryAttention, ResidualGate
from common.models.reactive.module import RxTModule
from common.seeding import derive


class ReactiveTransformer(RxTModule):
    config: RxTConfig
    config_class = RxTConfig

    def build(self, config: RxTConfig) -> None:
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.memory_attention = MemoryAttention(config)
        if config.initial_memory == "learned":
            self.first_memory = nn.Parameter(torch.empty(config.layers, config.slots, config.width))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, MixtureOfExperts):
            for weight in (module.up, module.down):
                nn.init.normal_(weight, std=std)
            for bias in (module.up_bias, module.down_bias):
                nn.init.zeros_(bias)
        elif isinstance(module, ResidualGate):
            if module.kind in ("linear", "per_number"):
                nn.init.constant_(module.linear.bias, module.initial)
            elif module.kind == "delta":
                module.linear.bias[-1] = module.initial
            elif module.kind != "none":
                nn.init.constant_(module.weight, module.initial)
        elif module is self and self.config.initial_memory == "learned":
            nn.init.normal_(self.first_memory, std=self.config.initial_memory_std)

    def initial_memory(self, seeds: Sequence[int]) -> Tensor:
        """Memory before anything was said, [len(seeds), layers, slots, width].

        normal: drawn on the CPU from each seed, so that every machine and batch gives the same;
        learned: the parameter, for all.
        """
        config = self.config
        if config.initial_memory == "learned":
            return self.first_memory.expand(len(seeds), -1, -1, -1)
        shape = (config.layers, config.slots, config.width)
        generator, memories = torch.Generator(), torch.empty(len(seeds), *shape)
        for seed, memory in zip(seeds, memories, strict=True):
            generator.manual_seed(derive(seed, "initial_memory"))
            torch.randn(shape, generator=generator, out=memory)
        return memories.mul_(config.initial_memory_std).to(self.device, self.dtype)

    def encode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens int64 [batch, tokens], mask bool, True at real tokens → encoded [batch, layers,
        tokens, width]."""
        return self.encoder(self.embedding(tokens), mask)

    def remember(
        self,
        memory: Tensor,
        encoded: Tensor,
        mask: Tensor,
        shares: list[Tensor] | None = None,
    ) -> Tensor:
        """Memory after reading one encoded interaction; shapes, and what `shares` collects, as in
        `MemoryAttention.forward`."""
        return self.memory_attention(memory, encoded, mask, shares)

    def prepare(self, encoded: Tensor) -> Tensor:
        """`MemoryAttention.prepare`: once for interactions that several memories read."""
        return self.memory_attention.prepare(encoded)

    def write(
        self, memory: Tensor, prepared: Tensor, mask: Tensor, shares: list[Tensor] | None = None
    ) -> Tensor:
        """`remember` of what `prepare` made."""
        return self.memory_attention.write(memory, prepared, mask, shares)

    def decode(
        self, tokens: Tensor, memory: Tensor, routings: list[Routing] | None = None
    ) -> Tensor:
        """Logits [batch, tokens, vocabulary] of right-padded sequences, each token predicting the
        next.

        routings, where given, collects what the mixture layers decided, for
        `feed_forward.load_balance`.
        """
        return self.decoder.logits(self.decode_hidden(tokens, memory, routings))

    def decode_hidden(
        self, tokens: Tensor, memory: Tensor, routings: list[Routing] | None = None
    ) -> Tensor:
        """As `decode`, before the output head: callers that need few positions project only
        those."""
        rope = self.decoder.rope(tokens.device)[: tokens.shape[1]]
        return self.decoder(
            self.embedding(tokens), Sequences(rope, *self.decoder.read_memory(memory)), routings
        )

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        return self.decode(tokens, memory)
