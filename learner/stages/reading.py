"""Before stage 4: each answer is predicted from its query and the encoding of the turn that says
what it needs, put where memory would be (`as_memory`).

Nothing before it sends the encoder a gradient that needs to know which value belongs to which name:
stages 1 and 2 detach it from the decoder's loss, and masked LM cannot guess a value at random. Here
the loss reaches the encoder directly, without memory attention between, which can then learn to
keep what is already there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn import functional as F

from common.config.stages import Reading
from common.data.conversations import pairs_to_read
from common.data.corpus import Corpus
from common.data.padding import pad
from common.data.tokenizer import ConversationTokenizer
from common.episode import Interaction
from common.models.layers.feed_forward import Routing
from common.models.reactive.memory import as_memory
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.unroll import TurnTokens, answer_logits, collate
from common.storage.checkpoint import Checkpoint
from learner.checkpointing import checkpoint_model
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm
from learner.rl.load_balance import router_terms
from learner.stages.stage import WriteTokenizer
from learner.stages.supervised import Objective, turn_tokens


class ReadingObjective(Objective):
    def __init__(
        self,
        settings: Reading,
        model: ReactiveTransformer,
        pairs: Sequence[tuple[TurnTokens, TurnTokens]],
    ):
        """pairs: a turn and one that can be answered from it."""
        self.settings, self.model, self.pairs = settings, model, pairs
        self.modules: dict[str, nn.Module] = {"model": model}

    @property
    def examples(self) -> int:
        return len(self.pairs)

    def tokens(self, index: int, step: int) -> int:
        return sum(len(turn.query) + len(turn.answer) for turn in self.pairs[index])

    def trainable(self, name: str) -> bool:
        return not name.startswith(("model.memory_attention.", "model.first_memory"))

    def terms(self, indices: Sequence[int], step: int, group: Group) -> list[LossTerm]:
        before, asked = zip(*(self.pairs[i] for i in indices), strict=True)
        read, mask = (part.to(group.device) for part in pad([list(t.remembered) for t in before]))
        batch = collate([[turn] for turn in asked]).to(group.device)
        order = list(batch.order)
        encoded = self.model.encode(read[order], mask[order])
        memory = as_memory(encoded, mask[order], self.model.config.slots)
        routings: list[Routing] = []
        logits, targets = answer_logits(
            self.model, batch.tokens, memory, batch.answer_mask(), routings
        )
        right = (logits.argmax(-1) == targets).sum().float()
        return [
            LossTerm(
                "train/loss_lm", F.cross_entropy(logits, targets, reduction="sum"), targets.numel()
            ),
            LossTerm("train/accuracy_lm", right, targets.numel(), coefficient=0.0),
            *router_terms(routings, batch.real(), self.settings.router_loss, group),
        ]


def reading_objective(
    settings: Reading, corpus: Corpus, checkpoint: Checkpoint, in_stage: int, seed: int
) -> tuple[ReadingObjective, WriteTokenizer]:
    """The turns of the training conversations that can be answered from the turn before."""
    model, tokenizer = checkpoint_model(checkpoint)
    pairs = [_tokens(pair, tokenizer) for pair in pairs_to_read(corpus.train)]
    objective = ReadingObjective(settings, model, pairs)
    return objective, tokenizer.save


def _tokens(
    pair: tuple[Interaction, Interaction], tokenizer: ConversationTokenizer
) -> tuple[TurnTokens, TurnTokens]:
    before, asked = (turn_tokens(turn, tokenizer) for turn in pair)
    return before, asked
