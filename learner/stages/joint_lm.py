"""Stages 1 and 2: the encoder learns to fill masked tokens, the decoder to predict the next one
while it reads what the encoder saw.

The decoder reads the encoder's states in the shape of memory (`as_memory`), detached, so that it
learns to use memory before there is any; its gradient reaches the encoder through the shared
embedding alone. Padding is never a target. In SFT the decoder's targets are the answer's tokens,
[EOS] among them, or it would never learn to stop.

Every text or interaction is a sequence of its own, padded: none sees another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.config.stages import SFT, JointLM
from common.data.corpus import Corpus
from common.data.padding import pad
from common.data.special_tokens import MASK, SPECIAL_TOKENS
from common.models.layers.exact import exact
from common.models.layers.feed_forward import Routing
from common.models.reactive.encoder import MaskedLMHead, NeighbourHead
from common.models.reactive.memory import as_memory
from common.models.reactive.model import ReactiveTransformer
from common.seeding import derive, uniforms
from common.storage.checkpoint import Checkpoint
from learner.checkpointing import checkpoint_model
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.rl.load_balance import router_terms
from learner.stages.stage import WriteTokenizer
from learner.stages.supervised import Objective

SPECIAL = torch.arange(len(SPECIAL_TOKENS))
"""Never masked: the template can be told from the rest of it, and [T] decides whether an answer
comes next."""

OFFSETS_PER_STEP = 4
"""Offsets of `neighbours` that a step draws: all of them would cost more than the rest of the
step."""


class JointLMObjective(Objective):
    beside = {"masked_lm_head": "encoder", "neighbour_head": "encoder"}  # noqa: RUF012

    def __init__(
        self,
        settings: JointLM,
        model: ReactiveTransformer,
        sequences: Sequence[Sequence[int]],
        prompts: Sequence[int],
        seed: int,
        weights: Sequence[float] | None = None,
    ):
        """sequences: token ids; prompts: how many leading tokens of each are no targets (0: all
        are). weights: of each in the decoder's loss; None: alike."""
        self.settings, self.model, self.sequences, self.prompts, self.seed = (
            settings,
            model,
            sequences,
            prompts,
            seed,
        )
        self.weights = weights
        self.head = MaskedLMHead(model.config)
        self.modules: dict[str, nn.Module] = {"model": model, "masked_lm_head": self.head}
        self.neighbours: NeighbourHead | None = None
        if settings.neighbours:
            self.neighbours = NeighbourHead(model.config, settings.neighbours)
            self.modules["neighbour_head"] = self.neighbours

    @property
    def examples(self) -> int:
        return len(self.sequences)

    def tokens(self, index: int, step: int) -> int:
        return len(self.sequences[index])

    def trainable(self, name: str) -> bool:
        return not name.startswith(("model.memory_attention.", "model.first_memory"))

    def terms(self, indices: Sequence[int], step: int, group: Group) -> list[LossTerm]:
        tokens, mask = pad([self.sequences[i] for i in indices])
        keys = [derive(self.seed, self.settings.stage, step, i) for i in indices]
        guessed = self._draw(keys, "mask", tokens) < self.settings.mask_probability
        guessed &= mask & ~torch.isin(tokens, SPECIAL)
        masked = torch.where(guessed, self._replacements(keys, tokens), tokens)
        tokens, mask, masked, guessed = (
            x.to(group.device) for x in (tokens, mask, masked, guessed)
        )
        if step < self.settings.decoder_only_steps:
            memory = self.model.initial_memory(keys).detach()
            unmeasured = self._unmeasured(group.device)
            return [*unmeasured, *self._decoder_terms(indices, tokens, mask, memory, group)]
        encoded = self.model.encode(masked, mask)
        memory = self._memory(encoded.detach(), mask, keys, tokens)
        hidden = encoded[:, -1]
        return [
            *self._masked_terms(hidden[guessed], tokens[guessed]),
            *self._neighbour_terms(hidden, tokens, mask & ~guessed, step),
            *self._decoder_terms(indices, tokens, mask, memory, group),
        ]

    def _replacements(self, keys: list[int], tokens: Tensor) -> Tensor:
        """Tokens that the encoder sees where it has to guess: [MASK], or by their shares another
        one, or the token itself."""
        settings, first = self.settings, len(SPECIAL_TOKENS)
        seen = torch.full_like(tokens, MASK)
        if settings.mask_random or settings.mask_keep:
            share = self._draw(keys, "replacement", tokens)
            drawn = self._draw(keys, "random token", tokens)
            others = first + (drawn * (self.model.config.vocab_size - first)).long()
            seen = torch.where(share < settings.mask_random, others, seen)
            seen = torch.where(share >= 1 - settings.mask_keep, tokens, seen)
        return seen

    def _unmeasured(self, device: torch.device) -> list[LossTerm]:
        """The encoder's terms of a step without it, which count nothing."""
        heads = ("_masked_lm",) if self.neighbours is None else ("_masked_lm", "_neighbours")
        nothing = torch.zeros((), device=device)
        return [
            LossTerm(name, nothing, 0, coefficient=0.0)
            for name in self.settings.measures
            if name.endswith(heads)
        ]

    def _masked_terms(self, hidden: Tensor, missing: Tensor) -> list[LossTerm]:
        """Loss of tokens `missing` [tokens], guessed from hidden [tokens, width]."""
        guesses = exact(self.head(hidden))
        right = (guesses.argmax(-1) == missing).sum().float()
        loss = F.cross_entropy(guesses, missing, reduction="sum")
        return [
            LossTerm("train/loss_masked_lm", loss, missing.numel()),
            LossTerm("train/accuracy_masked_lm", right, missing.numel(), coefficient=0.0),
        ]

    def _decoder_terms(
        self, indices: Sequence[int], tokens: Tensor, mask: Tensor, memory: Tensor, group: Group
    ) -> list[LossTerm]:
        """Loss of the next token; tokens and mask [batch, tokens], memory as `decode` reads it."""
        start = torch.tensor([self.prompts[i] for i in indices], device=tokens.device)
        target = torch.arange(1, tokens.shape[1], device=tokens.device)
        predicts = (target >= start[:, None]) & mask[:, 1:]
        routings: list[Routing] = []
        hidden = self.model.decode_hidden(tokens[:, :-1], memory, routings)
        logits = exact(self.model.decoder.logits(hidden[predicts]))
        targets = tokens[:, 1:][predicts]
        losses = F.cross_entropy(logits, targets, reduction="none")
        right = (logits.argmax(-1) == targets).float()
        count: Tensor | float = targets.numel()
        if self.weights is not None:
            own = torch.tensor([self.weights[i] for i in indices], device=tokens.device)
            weights = own.repeat_interleave(predicts.sum(1))
            losses, right, count = weights * losses, weights * right, weights.sum()
        return [
            LossTerm("train/loss_lm", losses.sum(), count),
            LossTerm("train/accuracy_lm", right.sum(), count, coefficient=0.0),
            *router_terms(routings, mask[:, 1:], self.settings.router_loss, group),
        ]

    def _neighbour_terms(
        self, hidden: Tensor, tokens: Tensor, seen: Tensor, step: int
    ) -> list[LossTerm]:
        """Loss of the tokens around each token, at some of the offsets.

        hidden [batch, tokens, width]; seen: bool [batch, tokens], tokens that the encoder read. A
        token that it had to guess cannot be told and is not asked for.
        """
        head = self.neighbours
        if head is None:
            return []
        draw = np.random.default_rng(derive(self.seed, self.settings.stage, "offsets", step))
        chosen = draw.permutation(len(head.offsets))[:OFFSETS_PER_STEP]
        logits = [hidden.new_zeros(0, self.model.config.vocab_size)]
        targets = [tokens.new_zeros(0)]
        for offset in (head.offsets[i] for i in chosen):
            if abs(offset) >= tokens.shape[1]:
                continue
            here = slice(max(0, -offset), tokens.shape[1] - max(0, offset))
            there = slice(max(0, offset), tokens.shape[1] - max(0, -offset))
            asked = seen[:, here] & seen[:, there]
            logits.append(exact(head(hidden[:, here][asked], offset)))
            targets.append(tokens[:, there][asked])
        guesses, truth = torch.cat(logits), torch.cat(targets)
        right = (guesses.argmax(-1) == truth).sum().float()
        loss = F.cross_entropy(guesses, truth, reduction="sum")
        return [
            LossTerm("train/loss_neighbours", loss, truth.numel()),
            LossTerm("train/accuracy_neighbours", right, truth.numel(), coefficient=0.0),
        ]

    def _memory(self, encoded: Tensor, mask: Tensor, keys: list[int], tokens: Tensor) -> Tensor:
        """Memory that the decoder reads: the encoder's states with noise and gaps, or, for the
        blind share, memory before anything was said."""
        settings = self.settings
        if settings.hide_probability:
            encoded = encoded * (self._draw(keys, "hide", tokens) >= settings.hide_probability)[
                :, None, :, None
            ].to(encoded.dtype)
        memory = as_memory(encoded, mask, self.model.config.slots)
        if settings.noise:
            noise = [
                torch.randn(
                    memory.shape[1:], generator=torch.Generator().manual_seed(derive(key, "noise"))
                )
                for key in keys
            ]
            memory = memory + settings.noise * torch.stack(noise).to(memory)
        if settings.blind_fraction:
            blind = (
                torch.from_numpy(uniforms(np.array(keys), np.full(len(keys), 10**6)))
                < settings.blind_fraction
            )
            memory = torch.where(
                blind.to(memory.device)[:, None, None, None],
                self.model.initial_memory(keys).detach(),
                memory,
            )
        return memory

    @staticmethod
    def _draw(keys: list[int], purpose: str, tokens: Tensor) -> Tensor:
        """One uniform per token that depends on the example and the step alone, so that any split
        over ranks draws the same."""
        width = tokens.shape[1]
        streams = np.repeat([derive(key, purpose) for key in keys], width)
        return torch.from_numpy(uniforms(streams, np.tile(np.arange(width), len(keys)))).view(
            len(keys), width
        )


def text_objective(
    settings: JointLM, corpus: Corpus, checkpoint: Checkpoint, in_stage: int, seed: int
) -> tuple[JointLMObjective, WriteTokenizer]:
    """Stage 1, on all text."""
    model, tokenizer = checkpoint_model(checkpoint)
    limit = model.config.max_tokens
    pieces = [piece for text in corpus.texts for piece in chunks(tokenizer.text(text), limit)]
    objective = JointLMObjective(settings, model, pieces, [0] * len(pieces), seed)
    return objective, tokenizer.save


def pair_objective(
    settings: SFT, corpus: Corpus, checkpoint: Checkpoint, in_stage: int, seed: int
) -> tuple[JointLMObjective, WriteTokenizer]:
    """Stage 2, on the answers of single interactions."""
    model, tokenizer = checkpoint_model(checkpoint)
    prompts = [tokenizer.prompt(pair.query, pair.think is not None) for pair in corpus.pairs]
    pairs = [
        [*prompt, *tokenizer.answer(pair.answer, pair.think)]
        for prompt, pair in zip(prompts, corpus.pairs, strict=True)
    ]
    lengths = [len(prompt) for prompt in prompts]
    weights: list[float] | None = None
    if not settings.start_weight == settings.middle_weight == 1:
        weights = [
            settings.middle_weight if middle else settings.start_weight
            for middle in corpus.pairs_from_the_middle()
        ]
    return JointLMObjective(settings, model, pairs, lengths, seed, weights), tokenizer.save


def chunks(tokens: Sequence[int], limit: int) -> list[Sequence[int]]:
    """A long text in pieces of at most `limit` tokens; a piece of one token predicts nothing and is
    left out."""
    return [
        piece
        for start in range(0, len(tokens), limit)
        if len(piece := tokens[start : start + limit]) > 1
    ]
