"""Stages lm_text and lm_sft: next-token prediction of a causal language model, on texts or on the
answers of interactions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from common.config.lm import LMSFT, LMText
from common.config.run import MICRO_BATCH_TOKENS
from common.data.causal_tokenizer import CausalTokenizer
from common.data.corpus import Corpus
from common.data.padding import pad
from common.storage.checkpoint import Checkpoint
from learner.checkpointing import WITH_ADAPTERS
from learner.evaluation.measure import run_of
from learner.lora import has_adapters, is_adapter
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.policies.causal import adapted, in_passes
from learner.policies.table import open_policy
from learner.policies.trunk import trained_names
from learner.stages.joint_lm import chunks
from learner.stages.remembered import answer_example, conversation_examples
from learner.stages.stage import WriteTokenizer
from learner.stages.supervised import Objective


class CausalLMObjective(Objective):
    """sequences: token ids. prompts: how many leading tokens of each are no targets. The first
    token of a sequence never is one. micro_batch_tokens: of one pass, padding included. trained:
    names of the parameters that learn; None: all, or the adapters."""

    def __init__(
        self,
        model: Any,
        sequences: Sequence[Sequence[int]],
        prompts: Sequence[int],
        micro_batch_tokens: int = MICRO_BATCH_TOKENS,
        trained: frozenset[str] | None = None,
    ):
        self.model, self.sequences, self.prompts = model, sequences, prompts
        self._micro_batch_tokens, self._trained = micro_batch_tokens, trained
        # Not under "model" with adapters: a checkpoint's model has them merged in, and to go on
        # they are needed apart.
        name = WITH_ADAPTERS if has_adapters(model) else "model"
        self.modules: dict[str, nn.Module] = {name: model}

    @property
    def examples(self) -> int:
        return len(self.sequences)

    def tokens(self, index: int, step: int) -> int:
        return len(self.sequences[index])

    def trainable(self, name: str) -> bool:
        if self._trained is not None:
            return name.removeprefix("model.") in self._trained
        return not name.startswith(f"{WITH_ADAPTERS}.") or is_adapter(name)

    def passes(self, indices: Sequence[int], step: int, group: Group) -> Iterator[list[LossTerm]]:
        lengths = [len(self.sequences[i]) for i in indices]
        count = sum(self._targets(i) for i in indices)
        # Of no examples one pass, too: a rank without work takes part in the step.
        for chosen in list(in_passes(lengths, self._micro_batch_tokens)) or [[]]:
            part = self.terms([indices[i] for i in chosen], step, group)
            yield [replace(term, count=count) for term in part]

    def terms(self, indices: Sequence[int], step: int, group: Group) -> list[LossTerm]:
        # Without dropout, as in reinforcement learning: what a step learns must not depend on how
        # its examples are divided over ranks.
        self.model.eval()
        device = group.device
        loss, right = (torch.zeros((), device=device) for _ in range(2))
        if indices:
            tokens, mask = pad([self.sequences[i] for i in indices])
            starts = torch.tensor([max(1, self.prompts[i]) for i in indices])
            target = torch.arange(1, tokens.shape[1])
            wanted = (target >= starts[:, None]) & mask[:, 1:]
            given = self.model(input_ids=tokens.to(device), use_cache=False).logits
            logits = given[:, :-1][wanted.to(device)].float()
            targets = tokens[:, 1:][wanted].to(device)
            loss = F.cross_entropy(logits, targets, reduction="sum")
            right = (logits.argmax(-1) == targets).sum()
        count = sum(self._targets(i) for i in indices)
        return [
            LossTerm("train/loss_lm", loss, count),
            LossTerm("train/accuracy_lm", right, count, coefficient=0.0),
        ]

    def _targets(self, index: int) -> int:
        """Tokens of a sequence that the loss is on."""
        return max(0, len(self.sequences[index]) - max(1, self.prompts[index]))


def text_objective(
    settings: LMText, corpus: Corpus, checkpoint: Checkpoint, in_stage: int, seed: int
) -> tuple[CausalLMObjective, WriteTokenizer]:
    """On all text, in pieces of the longest sequence."""
    opened = _opened(checkpoint)
    pieces = [
        piece
        for text in corpus.texts
        for piece in chunks(opened.tokenizer.text(text), opened.max_tokens)
    ]
    return opened.objective(pieces, [0] * len(pieces)), opened.tokenizer.save


def answer_objective(
    settings: LMSFT, corpus: Corpus, checkpoint: Checkpoint, in_stage: int, seed: int
) -> tuple[CausalLMObjective, WriteTokenizer]:
    """On the answers of single interactions, or on those of conversations and the memories that are
    written in them."""
    opened = _opened(checkpoint)
    tokenizer = opened.tokenizer
    if settings.examples == "conversations":
        examples = conversation_examples(corpus.train, tokenizer)
    else:
        context, prompt = tokenizer.memory.context, tokenizer.prompt
        examples = [
            answer_example(context((), prompt(each.query)), each, tokenizer)
            for each in corpus.pairs
        ]
    sequences, starts = [each.ids for each in examples], [each.start for each in examples]
    return opened.objective(sequences, starts), tokenizer.save


class _Opened(NamedTuple):
    model: Any
    """As the run trains it."""
    tokenizer: CausalTokenizer
    max_tokens: int
    """Longest sequence."""
    micro_batch_tokens: int
    trained: frozenset[str] | None
    """Parameters that learn; None: all, or the adapters."""

    def objective(
        self, sequences: Sequence[Sequence[int]], prompts: Sequence[int]
    ) -> CausalLMObjective:
        return CausalLMObjective(
            self.model, sequences, prompts, self.micro_batch_tokens, self.trained
        )


def _opened(checkpoint: Checkpoint) -> _Opened:
    directory = run_of(checkpoint.where)
    if directory is None:
        opened = open_policy(checkpoint)
        return _Opened(opened.module, opened.tokenizer, opened.max_tokens, MICRO_BATCH_TOKENS, None)
    run = directory.run()
    opened = open_policy(checkpoint, run.model.causal)
    assert run.model.causal is not None, "only a causal policy is trained by this stage"
    model = adapted(opened.module, run.model.causal)
    limit = run.learner.micro_batch_tokens
    trained = trained_names(model, run.model.causal)
    return _Opened(model, opened.tokenizer, opened.max_tokens, limit, trained)
