"""A reward model that reads short-term memory: how good is this answer, after all that was said
before?

Two halves. The writer (embedding, encoder, memory attention) is the policy's as it was, frozen: it
turns the interactions before into memory. The reader is a second encoder that starts as the
policy's and looks at memory after every layer, by cross-attentions that start as the decoder's:
reading memory is not learnt from a few thousand comparisons. Its last states, averaged over the
answer (a long query would drown it), go through one linear head: one number, or logits of the
levels 1…K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from common.models.layers.attention import rope_table
from common.models.reactive.config import RxTConfig
from common.models.reactive.encoder import Encoder, Packing
from common.models.reactive.memory import MemoryAttention
from common.models.reactive.memory_look import MemoryLook, start_as_decoder
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.module import RxTModule


@dataclass
class RxTRewardConfig(RxTConfig):
    model_type: ClassVar[str] = "rxt_reward"

    levels: int = 1
    """1: a scalar; K > 1: logits of the levels 1…K."""


class RxTRewardModel(RxTModule):
    config: RxTRewardConfig
    config_class = RxTRewardConfig

    def build(self, config: RxTRewardConfig) -> None:
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.encoder = Encoder(config)
        self.memory_attention = MemoryAttention(config)
        if config.initial_memory == "learned":
            self.first_memory = nn.Parameter(torch.zeros(config.layers, config.slots, config.width))
        self.reader_embedding = nn.Embedding(config.vocab_size, config.width)
        self.reader = Encoder(config)
        self.looks = nn.ModuleList(MemoryLook(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, config.levels)

    @classmethod
    def from_policy(cls, policy: ReactiveTransformer, levels: int) -> RxTRewardModel:
        """With the policy's weights in both halves, and a new head. That of a scalar is N(0, 1 /
        sqrt(width + 1)), as in lm-human-preferences. That of levels is 0, so that they begin
        equally probable, which is the best constant answer: a distribution drawn at random has
        narrow places, loses to it, and would have to be unlearnt from the few comparisons there
        are."""
        model = cls(RxTRewardConfig(**policy.config.to_dict(), levels=levels))
        for own, given in (
            (model.embedding, policy.embedding), (model.encoder, policy.encoder),
            (model.memory_attention, policy.memory_attention),
            (model.reader_embedding, policy.embedding), (model.reader, policy.encoder),
        ):  # fmt: skip
            own.load_state_dict(given.state_dict())
        start_as_decoder(model.looks, policy)
        if policy.config.initial_memory == "learned":
            model.first_memory.data.copy_(policy.first_memory.data)
        nn.init.normal_(
            model.head.weight, std=(policy.config.width + 1) ** -0.5 if levels == 1 else 0.0
        )
        nn.init.zeros_(model.head.bias)
        return model

    @property
    def writer_parameters(self) -> tuple[str, ...]:
        """Beginnings of the names of what writes memory, and is not trained."""
        return "embedding.", "encoder.", "memory_attention.", "first_memory"

    # --- the writer, with the signatures of `ReactiveTransformer` ---------------------------------

    def initial_memory(self, seeds: Sequence[int]) -> Tensor:
        return ReactiveTransformer.initial_memory(self, seeds)  # type: ignore[arg-type]

    def encode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(self.embedding(tokens), mask)

    def prepare(self, encoded: Tensor) -> Tensor:
        return self.memory_attention.prepare(encoded)

    def write(
        self, memory: Tensor, prepared: Tensor, mask: Tensor, shares: list[Tensor] | None = None
    ) -> Tensor:
        return self.memory_attention.write(memory, prepared, mask, shares)

    # --- the reader -------------------------------------------------------------------------------

    def forward(self, tokens: Tensor, mask: Tensor, memory: Tensor) -> Tensor:
        """tokens int64 [batch, tokens], right-padded, each an interaction with its [A]; mask bool;
        memory [batch, layers, slots, width] → [batch, levels]."""
        table = rope_table(
            self.config.positions, self.config.head_dim, self.config.rope_base, tokens.device
        )
        embedded = self.reader_embedding(tokens)
        packing = Packing(mask, table, embedded.dtype)
        x = packing.pack(embedded)
        for i, (layer, look) in enumerate(zip(self.reader.layers, self.looks, strict=True)):
            x = layer(x, packing)
            x = x + packing.pack(look(packing.unpack(x), table[: tokens.shape[1]], memory[:, i]))
        answer = mask & ((tokens == self.config.answer_token_id).cumsum(1) > 0)
        states = packing.unpack(self.norm(x)) * answer.unsqueeze(-1)
        return self.head(states.sum(1) / answer.sum(1, keepdim=True))
