"""Stage 4: whole conversations, teacher forced: each answer is predicted from its query and the
memory of all turns before.

The loss of an answer flows back through the writes that its memory was made by: `bptt_turns: 1`
stops at the last write, as in the articles; "all" also teaches a write what will be asked many
turns later.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn import functional as F

from common.config.stages import MemoryAware
from common.data.corpus import Corpus
from common.models.layers.feed_forward import Routing
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.unroll import TurnTokens, answer_logits, collate, memories
from common.seeding import derive
from common.storage.checkpoint import Checkpoint
from learner.checkpointing import checkpoint_model
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.rl.load_balance import router_terms
from learner.stages.stage import WriteTokenizer
from learner.stages.supervised import Objective, row_tokens


class MemoryAwareObjective(Objective):
    def __init__(
        self,
        settings: MemoryAware,
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
        self.longest = max(len(turns) for turns in conversations)
        self.modules: dict[str, nn.Module] = {"model": model}

    @property
    def examples(self) -> int:
        return len(self.conversations)

    def tokens(self, index: int, step: int) -> int:
        return sum(
            len(turn.query) + len(turn.answer)
            for turn in self.conversations[index][: turns_at(self.settings, self.longest, step)]
        )

    def trainable(self, name: str) -> bool:
        if name.startswith("model.encoder."):
            return self.settings.train_encoder
        if name.startswith(("model.memory_attention.", "model.first_memory")):
            return self.settings.train_memory
        return True

    def terms(self, indices: Sequence[int], step: int, group: Group) -> list[LossTerm]:
        turns = turns_at(self.settings, self.longest, step)
        batch = collate([self.conversations[i][:turns] for i in indices]).to(group.device)
        initial = self.model.initial_memory(
            [derive(self.seed, self.settings.stage, step, i) for i in indices]
        )
        memory = memories(
            self.model, batch, initial, self.settings.bptt_turns, self.settings.train_encoder
        )
        routings: list[Routing] = []
        logits, targets = answer_logits(
            self.model, batch.tokens, memory, batch.answer_mask(), routings
        )
        real = (
            batch.tokens.new_ones(batch.tokens.shape[1] - 1).cumsum(0) <= batch.length[:, None] - 1
        )
        return [
            LossTerm(
                "train/loss_lm", F.cross_entropy(logits, targets, reduction="sum"), targets.numel()
            ),
            LossTerm(
                "train/accuracy_lm",
                (logits.argmax(-1) == targets).sum().float(),
                targets.numel(),
                coefficient=0.0,
            ),
            *router_terms(routings, real, self.settings.router_loss, group),
        ]


def turns_at(settings: MemoryAware, longest: int, step: int) -> int:
    """Turns, opening included, that conversations are cut to at a step; grows evenly to
    `longest`."""
    if settings.first_follow_ups is None:
        return longest
    first = 1 + settings.first_follow_ups
    growing = max(settings.grow_fraction - settings.hold_fraction, 1 / settings.steps)
    share = (step / settings.steps - settings.hold_fraction) / growing
    return min(longest, first + max(0, int((longest - first + 1) * share)))


def conversation_objective(
    settings: MemoryAware, corpus: Corpus, checkpoint: Checkpoint, in_stage: int, seed: int
) -> tuple[MemoryAwareObjective, WriteTokenizer]:
    """Stage 4, on the training conversations."""
    model, tokenizer = checkpoint_model(checkpoint)
    conversations = [row_tokens(row, tokenizer) for row in corpus.train]
    return MemoryAwareObjective(settings, model, conversations, seed), tokenizer.save
