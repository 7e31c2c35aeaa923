"""Stage 3: the memory attention learns to keep the old and take in the new before any answer
depends on it.

Label of a write: (1 - w) · old memory + w · new information; the loss is minus their cosine, slot
by slot. New information is the encoded interaction in the shape of memory (`as_memory`: with as
many slots as tokens it is the encoding itself, else its adaptive average), so slots and tokens need
not be equal in number. w is `first_weight` for the first write, then falls from `next_weight`, and
may be shifted at random. How many steps it takes is best left to `until: {train/memory_cosine: …}`.
Encoder and decoder are frozen, and memory is detached before every write.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.config.stages import MemoryPretrain
from common.data.corpus import Corpus
from common.models.reactive.memory import as_memory
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.unroll import ConversationBatch, TurnTokens, collate
from common.seeding import derive, uniforms
from common.storage.checkpoint import Checkpoint
from learner.checkpointing import checkpoint_model
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.stages.memory_aware import growth_term
from learner.stages.stage import WriteTokenizer
from learner.stages.supervised import Objective, row_tokens


def new_weight(settings: MemoryPretrain, write: int) -> float:
    """Share of new information in the label of a write, 0 the first."""
    if write == 0:
        return settings.first_weight
    return max(
        settings.minimum_weight, settings.next_weight - settings.weight_decay_per_step * (write - 1)
    )


def new_weights(settings: MemoryPretrain, batch: ConversationBatch, seeds: Sequence[int]) -> Tensor:
    """[rows]: `new_weight` of each write, shifted by what its conversation and turn draw."""
    turns = batch.turns
    weights = torch.tensor([new_weight(settings, turn) for turn in turns.tolist()])
    if settings.label_weight_shift:
        streams = [derive(seeds[i], "shift") for i in batch.conversations.tolist()]
        drawn = torch.from_numpy(uniforms(np.array(streams), turns.numpy()))
        weights = (weights + settings.label_weight_shift * (2 * drawn - 1)).clamp(0, 1)
    return weights.to(batch.tokens.device, torch.float32)


def label_noise(batch: ConversationBatch, seeds: Sequence[int], memory: Tensor) -> Tensor:
    """Normal noise [rows, layers, slots, width] that a turn's label gets whatever batch it is in.
    memory [conversations, layers, slots, width]."""
    noise = []
    for conversation, turn in zip(batch.conversations.tolist(), batch.turns.tolist(), strict=True):
        generator = torch.Generator().manual_seed(derive(seeds[conversation], "label noise", turn))
        noise.append(torch.randn(memory.shape[1:], generator=generator))
    return torch.stack(noise).to(memory)


def input_noise(batch: ConversationBatch, seeds: Sequence[int], encoded: Tensor) -> Tensor:
    """Normal noise [rows, layers, tokens, width] that a turn gets whatever batch it is in; 0 at
    padding."""
    noise = torch.zeros(encoded.shape)
    lengths = batch.written_mask.sum(1)[batch.written_by].tolist()
    for row, (conversation, turn, length) in enumerate(
        zip(batch.conversations.tolist(), batch.turns.tolist(), lengths, strict=True)
    ):
        generator = torch.Generator().manual_seed(derive(seeds[conversation], "noise", turn))
        noise[row, :, :length] = torch.randn(
            encoded.shape[1], length, encoded.shape[3], generator=generator
        )
    return noise.to(encoded)


class MemoryPretrainObjective(Objective):
    def __init__(
        self,
        settings: MemoryPretrain,
        model: ReactiveTransformer,
        conversations: Sequence[Sequence[TurnTokens]],
        seed: int,
    ):
        self.settings, self.model, self.conversations, self.seed = (
            settings,
            model,
            conversations,
            seed,
        )
        self.modules: dict[str, nn.Module] = {"model": model}

    @property
    def examples(self) -> int:
        return len(self.conversations)

    def tokens(self, index: int, step: int) -> int:
        return sum(len(turn.remembered) for turn in self.conversations[index])

    def trainable(self, name: str) -> bool:
        return name.startswith(("model.memory_attention.", "model.first_memory"))

    def terms(self, indices: Sequence[int], step: int, group: Group) -> list[LossTerm]:
        batch = collate([self.conversations[i] for i in indices]).to(group.device)
        seeds = [derive(self.seed, self.settings.stage, step, i) for i in indices]
        memory = self.model.initial_memory([seeds[i] for i in batch.order])
        with torch.no_grad():
            encoded = self.model.encode(batch.written, batch.written_mask)[batch.written_by]
            mask = batch.written_mask[batch.written_by]
            fresh = as_memory(encoded, mask, self.model.config.slots)
        seen = encoded
        if self.settings.input_noise:
            seen = encoded + self.settings.input_noise * input_noise(batch, seeds, encoded)
        weights = new_weights(self.settings, batch, seeds)[:, None, None, None].to(fresh.dtype)
        noise: Tensor | None = None
        if self.settings.label_noise:
            noise = self.settings.label_noise * label_noise(batch, seeds, memory)
        cosine, change, start = (
            torch.zeros((), device=group.device),
            torch.zeros((), device=group.device),
            0,
        )
        states = [memory]
        for write, n in enumerate(batch.active):
            rows = slice(start, start + n)
            start += n
            old = memory[:n] if write == 0 else memory[:n].detach()
            memory = self.model.remember(old, seen[rows], mask[rows])
            states.append(memory.detach())
            weight = weights[rows]
            label = (1 - weight) * old.detach() + weight * fresh[rows]
            if noise is not None:
                label = label + noise[rows]
            cosine = cosine + F.cosine_similarity(memory, label, dim=-1).mean(dim=(1, 2)).sum()
            change = change + (memory - old).detach().square().mean(dim=(1, 2, 3)).sum()
        return [
            LossTerm("train/memory_cosine", cosine, start, coefficient=-1.0),
            LossTerm("memory/change", change, start, coefficient=0.0),
            growth_term(torch.cat(states), [batch.active[0], *batch.active]),
        ]


def write_objective(
    settings: MemoryPretrain, corpus: Corpus, checkpoint: Checkpoint, in_stage: int, seed: int
) -> tuple[MemoryPretrainObjective, WriteTokenizer]:
    """Stage 3, on the interactions of the training conversations."""
    model, tokenizer = checkpoint_model(checkpoint)
    conversations = [row_tokens(row, tokenizer)[: settings.max_writes] for row in corpus.train]
    return MemoryPretrainObjective(settings, model, conversations, seed), tokenizer.save
