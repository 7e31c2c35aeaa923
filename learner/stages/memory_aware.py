"""Stage 4: whole conversations, teacher forced: each answer is predicted from its query and the
memory of all turns before.

The loss of an answer flows back through the writes that its memory was made by: `bptt_turns: 1`
stops at the last write, as in the articles; "all" also teaches a write what will be asked many
turns later.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.config.stages import MemoryAware
from common.data.conversations import up_to
from common.data.corpus import Corpus
from common.models.layers.feed_forward import Routing
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.unroll import TurnTokens, answer_logits, collate, growth, memories
from common.seeding import derive
from common.storage.checkpoint import Checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.metrics import Metrics
from learner.checkpointing import checkpoint_model
from learner.evaluation.held_out import HeldOut
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.policies.table import CheckpointPolicy
from learner.rl.load_balance import router_terms
from learner.stages.stage import WriteTokenizer
from learner.stages.supervised import Objective, turn_tokens


class MemoryAwareObjective(Objective):
    def __init__(
        self,
        settings: MemoryAware,
        model: ReactiveTransformer,
        conversations: Sequence[Sequence[TurnTokens]],
        seed: int,
        held_out: HeldOut | None = None,
    ):
        """held_out: what `evaluate_every` measures on."""
        self.held_out = held_out
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
        return True

    def terms(self, indices: Sequence[int], step: int, group: Group) -> list[LossTerm]:
        settings, turns = self.settings, turns_at(self.settings, self.longest, step)
        cut = [up_to_last_needed(self._weighted(i, step)[:turns]) for i in indices]
        batch = collate(cut).to(group.device)
        initial = self.model.initial_memory(
            [derive(self.seed, self.settings.stage, step, i) for i in indices]
        )
        shares: list[Tensor] = []
        memory = memories(self.model, batch, initial, settings.bptt_turns, shares)
        routings: list[Routing] = []
        needed, mask = batch.weight > 0, batch.answer_mask()
        needed[0] |= not needed.any()  # a rank without any takes part in the step all the same
        logits, targets = answer_logits(
            self.model, batch.tokens[needed], memory[needed], mask[needed], routings
        )
        weights = batch.weight[needed].repeat_interleave(mask[needed].sum(1))
        right = (logits.argmax(-1) == targets).float()
        losses = F.cross_entropy(logits, targets, reduction="none")
        return [
            LossTerm("train/loss_lm", (weights * losses).sum(), weights.sum()),
            LossTerm("train/accuracy_lm", (weights * right).sum(), weights.sum(), coefficient=0.0),
            growth_term(memory, batch.active),
            gate_term(shares, self._gate_penalty(step), group.device),
            *router_terms(routings, batch.real()[needed], settings.router_loss, group),
        ]

    def after_step(
        self, done: int, group: Group, metrics: Metrics, directory: RunDirectory
    ) -> None:
        settings = self.settings
        due = settings.evaluate_every and done % settings.evaluate_every == 0
        if due and group.rank == 0 and self.held_out is not None:
            self.held_out.measure(directory.run(), settings.evaluate_conversations, metrics)

    def _weighted(self, index: int, step: int) -> Sequence[TurnTokens]:
        """A conversation with the weights of its answers at a step."""
        conversation = self.conversations[index]
        if not self.settings.weights.sampled:
            return conversation
        draws = random.Random(derive(self.seed, "weights", step, index))
        return [replace(turn, weight=float(draws.random() < turn.weight)) for turn in conversation]

    def _gate_penalty(self, step: int) -> float:
        settings = self.settings
        begins = settings.gate_penalty_from * settings.total_steps
        return settings.gate_penalty if step >= begins else 0.0


def up_to_last_needed(turns: Sequence[TurnTokens]) -> Sequence[TurnTokens]:
    """A conversation without the turns at its end whose answers have no weight; at least one
    turn."""
    needed = [i for i, turn in enumerate(turns) if turn.weight > 0]
    return turns[: needed[-1] + 1] if needed else turns[:1]


def growth_term(memory: Tensor, active: Sequence[int]) -> LossTerm:
    """Measured only: how memory's size changes by a write."""
    found = growth(memory, active)
    return LossTerm("memory/growth", found.sum(), len(found), coefficient=0.0)


def gate_term(shares: Sequence[Tensor], coefficient: float, device: torch.device) -> LossTerm:
    """The mean share of memory that a write replaces, over writes, slots and width.

    shares: [batch, slots, width] of each write and layer, as `MemoryAttention.forward` collects
    them; empty for memory without gates, which has no such share.
    """
    total = torch.zeros((), device=device)
    with torch.set_grad_enabled(coefficient > 0):
        for share in shares:
            total = total + share.mean(dim=(1, 2)).sum()
    return LossTerm("memory/replaced", total, sum(map(len, shares)), coefficient)


def turns_at(settings: MemoryAware, longest: int, step: int) -> int:
    """Turns, opening included, that conversations are cut to at a step; grows evenly to
    `longest`."""
    if settings.first_follow_ups is None:
        return longest
    first = 1 + settings.first_follow_ups
    growing = max(settings.grow_fraction - settings.hold_fraction, 1 / settings.total_steps)
    share = (step / settings.total_steps - settings.hold_fraction) / growing
    return min(longest, first + max(0, int((longest - first + 1) * share)))


def conversation_objective(
    settings: MemoryAware, corpus: Corpus, checkpoint: Checkpoint, in_stage: int, seed: int
) -> tuple[MemoryAwareObjective, WriteTokenizer]:
    """Stage 4, on the training conversations."""
    model, tokenizer = checkpoint_model(checkpoint)
    conversations = [
        [
            replace(turn_tokens(turn, tokenizer), weight=settings.weights.of(turn))
            for turn in row.turns
        ]
        for row in up_to(corpus.train, settings.max_follow_ups)
    ]
    held_out = HeldOut(CheckpointPolicy("reactive", model, tokenizer), corpus.eval, corpus.train)
    return MemoryAwareObjective(settings, model, conversations, seed, held_out), tokenizer.save
