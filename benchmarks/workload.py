"""What the rollout benchmark plays: a model with random weights, queries of one length, answers of
given lengths.

The model of all figures: width 128, 4 layers each of encoder, decoder and memory attention, 8 heads
with sSQA 4/4, feed-forward 384, 64 memory slots, vocabulary 4096, dense, float32; queries of 15
tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch

from common.config.names import BackendName
from common.config.rollout import Sampling
from common.data.tokenizer import EOS, SMALLEST_VOCABULARY, ConversationTokenizer, train_tokenizer
from common.episode import Interaction, Row, Task
from common.models.reactive.config import RxTConfig
from common.models.reactive.model import ReactiveTransformer
from common.seeding import derive
from rollout.policies.episode_state import EpisodeState
from rollout.policies.reactive.engine import ReactiveEngine

QUERY_TOKENS, NEW_TOKENS = 15, 48
MEDIAN_TOKENS, P95_TOKENS, MOST_TOKENS = 12, 48, 200
"""Answer lengths with a long tail: log-normal, cut off."""
VOCABULARY, WIDTH = 4096, 128


def model_config(max_tokens: int) -> RxTConfig:
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "width": WIDTH,
        "layers": 4,
        "heads": 8,
        "query_heads": 4,
        "kv_heads": 4,
    }
    return RxTConfig(**shape, decoder_ff=384, encoder_ff=384, slots=64, max_tokens=max_tokens)


def make_model(max_tokens: int) -> ReactiveTransformer:
    torch.manual_seed(0)
    model = ReactiveTransformer(model_config(max_tokens))
    # Answers end where the benchmark says, not where random weights do.
    model.decoder.head.bias.data[EOS] = -1e9
    return model.eval().requires_grad_(False)


def make_tokenizer() -> ConversationTokenizer:
    """A byte is a token."""
    return train_tokenizer(["a b"], SMALLEST_VOCABULARY)


def make_tasks(follow_ups: Sequence[int], seed: int = 0) -> list[Task]:
    """Conversations of so many follow-ups each; [BOS], [Q], [A] and the space before the text are
    part of QUERY_TOKENS."""
    query = "x" * (QUERY_TOKENS - 4)
    interaction = Interaction(query, query)
    rows = [Row(query, query, (interaction,) * count) for count in follow_ups]
    return [Task(f"task-{seed}-{i}", row, seed=derive(seed, i)) for i, row in enumerate(rows)]


def make_engine(
    slots: int,
    kind: type[ReactiveEngine] = ReactiveEngine,
    new_tokens: int = NEW_TOKENS,
    backend: BackendName = "auto",
) -> ReactiveEngine:
    return kind(
        make_model(QUERY_TOKENS + new_tokens),
        make_tokenizer(),
        slots,
        Sampling(max_new_tokens=new_tokens),
        backend=backend,
    )


class LongTailed(ReactiveEngine):
    """Every answer has a length of its own, drawn for its task and turn."""

    def _room(self, playing: EpisodeState) -> int:
        draw = random.Random(derive(playing.task.seed, "length", playing.turn))
        sigma = math.log(P95_TOKENS / MEDIAN_TOKENS) / 1.645
        return min(max(1, round(draw.lognormvariate(math.log(MEDIAN_TOKENS), sigma))), MOST_TOKENS)


class TurnLockstep(LongTailed):
    """All rows go on together: who is ready waits for the longest answer, and is computed
    meanwhile. Conversations that are over make room for the next ones, so what is lost is lost to
    the lengths of answers alone."""

    def _due(self, ended: list[int]) -> bool:
        return len(ended) == len(self._live)


def play_in_batches(engine: ReactiveEngine, tasks: Sequence[Task], size: int) -> None:
    """A batch begins when all conversations of the one before are over, as where a batch is a
    tensor."""
    for start in range(0, len(tasks), size):
        engine.run(tasks[start : start + size])
