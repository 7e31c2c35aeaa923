"""Stages lm_text and lm_sft: next-token prediction of a causal language model, on texts or on the
answers of interactions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common.config.lm import LMSFT, LMText
from common.data.causal_tokenizer import CausalTokenizer
from common.data.corpus import Corpus
from common.data.padding import pad
from common.storage.checkpoint import Checkpoint
from learner.evaluation.measure import run_of
from learner.lora import has_adapters, is_adapter
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.policies.causal import PASS_TOKENS, adapted, in_passes
from learner.policies.table import open_policy
from learner.stages.joint_lm import chunks
from learner.stages.remembered import answer_example, conversation_examples
from learner.stages.stage import WriteTokenizer
from learner.stages.supervised import Objective


class CausalLMObjective(Objective):
    """sequences: token ids. prompts: how many leading tokens of each are no targets. The first
    token of a sequence never is one."""

    def __init__(self, model: Any, sequences: Sequence[Sequence[int]], prompts: Sequence[int]):
        self.model, self.sequences, self.prompts = model, sequences, prompts
        # Not under "model" with adapters: a checkpoint's model has them merged in, and to go on
        # they are needed apart.
        name = "with_adapters" if has_adapters(model) else "model"
        self.modules: dict[str, nn.Module] = {name: model}

    @property
    def examples(self) -> int:
        return len(self.sequences)

    def tokens(self, index: int, step: int) -> int:
        return len(self.sequences[index])

    def trainable(self, name: str) -> bool:
        return not name.startswith("with_adapters.") or is_adapter(name)

    def terms(self, indices: Sequence[int], step: int, group: Group) -> list[LossTerm]:
        # Without dropout, as in reinforcement learning: what a step learns must not depend on how
        # its examples are divided over ranks.
        self.model.eval()
        device = group.device
        loss = torch.zeros((), device=device)
        right, count = torch.zeros((), device=device), 0
        for chosen in in_passes([len(self.sequences[i]) for i in indices], PASS_TOKENS):
            part = [indices[i] for i in chosen]
            tokens, mask = pad([self.sequences[i] for i in part])
            starts = torch.tensor([max(1, self.prompts[i]) for i in part])
            target = torch.arange(1, tokens.shape[1])
            wanted = (target >= starts[:, None]) & mask[:, 1:]
            given = self.model(input_ids=tokens.to(device), use_cache=False).logits
            logits = given[:, :-1][wanted.to(device)].float()
            targets = tokens[:, 1:][wanted].to(device)
            loss = loss + F.cross_entropy(logits, targets, reduction="sum")
            right = right + (logits.argmax(-1) == targets).sum()
            count += targets.numel()
        return [
            LossTerm("train/loss_lm", loss, count),
            LossTerm("train/accuracy_lm", right, count, coefficient=0.0),
        ]


def text_objective(
    settings: LMText, corpus: Corpus, checkpoint: Checkpoint, in_stage: int, seed: int
) -> tuple[CausalLMObjective, WriteTokenizer]:
    """On all text, in pieces of the longest sequence."""
    model, tokenizer, longest = _opened(checkpoint)
    pieces = [piece for text in corpus.texts for piece in chunks(tokenizer.text(text), longest)]
    return CausalLMObjective(model, pieces, [0] * len(pieces)), tokenizer.save


def answer_objective(
    settings: LMSFT, corpus: Corpus, checkpoint: Checkpoint, in_stage: int, seed: int
) -> tuple[CausalLMObjective, WriteTokenizer]:
    """On the answers of single interactions, or on those of conversations and the memories that are
    written in them."""
    model, tokenizer, _ = _opened(checkpoint)
    if settings.examples == "conversations":
        examples = conversation_examples(corpus.train, tokenizer)
        sequences, starts = [each.ids for each in examples], [each.start for each in examples]
        return CausalLMObjective(model, sequences, starts), tokenizer.save
    examples = [
        answer_example(tokenizer.memory.context((), tokenizer.prompt(each.query)), each, tokenizer)
        for each in corpus.pairs
    ]
    sequences, starts = [each.ids for each in examples], [each.start for each in examples]
    objective = CausalLMObjective(model, sequences, starts)
    return objective, tokenizer.save


def _opened(checkpoint: Checkpoint) -> tuple[Any, CausalTokenizer, int]:
    """The model as the run trains it, its tokenizer, and its longest sequence."""
    run = run_of(checkpoint.where)
    settings = None if run is None else run.run().model.causal
    opened = open_policy(checkpoint, settings)
    model = opened.module if settings is None else adapted(opened.module, settings)
    return model, opened.tokenizer, opened.max_tokens
