"""Reward models: one interface over sequence classifiers of `transformers` and over an RxT that
reads memory.

What a model scores is a `Dialogue`: interactions before, a query, an answer. `read` turns it into
tokens once; `logits` scores many of them in passes of bounded size, those of like length together.
Training (learner/stages/reward_model.py) and serving (serving.py) share both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.config.locations import split_pin
from common.data.padding import pad
from common.data.tokenizer import PAD, ConversationTokenizer
from common.failures import DataFailure, InputError
from common.models.hub import naming, pretrained, require_nameable, require_weights
from common.models.reactive.module import read_model
from common.models.reactive.reward import RxTRewardModel
from common.models.reactive.unroll import TurnTokens, collate, memories


class Dialogue(NamedTuple):
    history: tuple[tuple[str, str], ...]
    """(query, answer) of the interactions before."""
    query: str
    answer: str


History = tuple[tuple[int, ...], ...]
"""Tokens that memory was written with, interaction by interaction."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A dialogue as tokens."""

    tokens: tuple[int, ...]
    written: History = ()

    @property
    def written_tokens(self) -> int:
        return sum(map(len, self.written))


class PreferenceModel(Protocol):
    levels: int
    """1: a scalar reward; K: logits of the levels 1…K."""

    @property
    def module(self) -> nn.Module: ...

    def read(self, dialogue: Dialogue) -> Reading: ...

    def logits(self, readings: Sequence[Reading]) -> Tensor:
        """[len(readings), levels] float32, in one pass; with gradients where they are on."""
        ...

    def save_tokenizer(self, folder: Path) -> None: ...


class TextPreferenceModel:
    """A sequence classifier of `transformers`: the whole dialogue is one text, which loses its
    beginning past `max_tokens`."""

    def __init__(self, module: PreTrainedModel, tokenizer: Any, max_tokens: int | None = None):
        self.module, self.tokenizer = module, tokenizer
        self.levels = int(module.config.num_labels or 1)
        known = (
            getattr(module.config, "max_position_embeddings", None),
            tokenizer.model_max_length,
            max_tokens,
        )
        self.max_tokens = min(limit for limit in known if limit)
        tokenizer.truncation_side = "left"
        if tokenizer.pad_token_id is None:
            # A decoder finds the last token of a row by what is not padding; an end of text at the
            # end of a row is not looked at.
            tokenizer.pad_token = tokenizer.eos_token
        if module.config.pad_token_id is None:
            module.config.pad_token_id = tokenizer.pad_token_id

    def read(self, dialogue: Dialogue) -> Reading:
        turns = [*dialogue.history, (dialogue.query, dialogue.answer)]
        ids = self._tokens(turns)
        while len(ids) > self.max_tokens and len(turns) > 1:
            # Whole turns go first: what a template puts before the first of them stays.
            turns = turns[1:]
            ids = self._tokens(turns)
        return Reading(tuple(ids if len(ids) <= self.max_tokens else self._tokens(turns, cut=True)))

    def _tokens(self, turns: Sequence[tuple[str, str]], cut: bool = False) -> list[int]:
        """With the special tokens that the tokenizer puts around a text; cut: from the left, inside
        of them."""
        cutting: dict[str, Any] = {"truncation": True, "max_length": self.max_tokens} if cut else {}
        if getattr(self.tokenizer, "chat_template", None):
            messages = [
                {"role": role, "content": text}
                for turn in turns
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
            ids: list[int] = self.tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=False, **cutting
            )
            return ids
        ids = self.tokenizer(
            "\n".join(part for turn in turns for part in turn), verbose=False, **cutting
        )["input_ids"]
        return ids

    def logits(self, readings: Sequence[Reading]) -> Tensor:
        device = self.module.device
        tokens, mask = pad(
            [reading.tokens for reading in readings], self.module.config.pad_token_id
        )
        return self.module(
            input_ids=tokens.to(device), attention_mask=mask.long().to(device)
        ).logits.float()

    def save_tokenizer(self, folder: Path) -> None:
        # Read back by `from_folder`: a model is served with the length that it was trained with.
        self.tokenizer.model_max_length = self.max_tokens
        self.tokenizer.save_pretrained(str(folder))


class MemoryPreferenceModel:
    """An `RxTRewardModel`: history is written to memory, the interaction is read with it."""

    def __init__(self, module: RxTRewardModel, tokenizer: ConversationTokenizer):
        self.module, self.tokenizer = module, tokenizer
        self.levels = module.config.levels

    def read(self, dialogue: Dialogue) -> Reading:
        """DataFailure where an interaction is longer than the model reads."""
        *written, tokens = [
            tuple(self.tokenizer.interaction(query, answer))
            for query, answer in (*dialogue.history, (dialogue.query, dialogue.answer))
        ]
        longest = max(map(len, (*written, tokens)))
        if longest > self.module.config.max_tokens:
            raise DataFailure(
                f"an interaction has {longest} tokens, and the reward model reads "
                f"{self.module.config.max_tokens}"
            )
        return Reading(tokens, tuple(written))

    def logits(self, readings: Sequence[Reading]) -> Tensor:
        device = self.module.device
        tokens, mask = pad([reading.tokens for reading in readings], PAD)
        return self.module(
            tokens.to(device),
            mask.to(device),
            self.memories([reading.written for reading in readings]),
        ).float()

    @torch.no_grad()
    def memories(self, histories: Sequence[History]) -> Tensor:
        """Memory after each history, [histories, layers, slots, width]. One that goes on another is
        written from there, not anew."""
        wholes: list[History] = []
        places: dict[History, tuple[int, int]] = {}
        for history in sorted(histories, key=len, reverse=True):
            if history not in places:
                for turns in range(len(history) + 1):
                    places.setdefault(history[:turns], (len(wholes), turns))
                wholes.append(history)
        # Memory is asked for before each turn, so one more turn, which is not looked at, gives
        # memory after the last.
        last = TurnTokens((), (PAD,), (PAD,))
        batch = collate(
            [[*(TurnTokens((), turn, turn) for turn in whole), last] for whole in wholes]
        ).to(self.module.device)
        writer: Any = self.module
        states = memories(writer, batch, self.module.initial_memory([0] * len(wholes)), "all")
        rows = {
            place: row
            for row, place in enumerate(
                zip(batch.conversations.tolist(), batch.turns.tolist(), strict=True)
            )
        }
        return states[
            torch.tensor([rows[places[history]] for history in histories], device=states.device)
        ]

    def save_tokenizer(self, folder: Path) -> None:
        self.tokenizer.save(folder)


def in_passes(
    score: Callable[[list[Reading]], Tensor], readings: Sequence[Reading], batch_tokens: int
) -> Tensor:
    """`score` of all readings in their order, [len(readings), …], in passes of at most
    `batch_tokens` tokens, with padding and with what memory is written with; a reading that has
    more is a pass by itself."""
    order = sorted(range(len(readings)), key=lambda i: len(readings[i].tokens))
    parts, start = [], 0
    while start < len(order):
        stop, written = start + 1, readings[order[start]].written_tokens
        while stop < len(order):
            written += readings[order[stop]].written_tokens
            if len(readings[order[stop]].tokens) * (stop + 1 - start) + written > batch_tokens:
                break
            stop += 1
        parts.append(score([readings[i] for i in order[start:stop]]))
        start = stop
    return torch.cat(parts)[torch.tensor(order).argsort()]


def expected_and_std(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Reward and its standard deviation, float64 [rows]: of a scalar as it is and 0, of levels Σ
    k·p(k) and the root of Σ p(k)(k - E)²."""
    logits = logits.double()
    if logits.shape[-1] == 1:
        return logits[..., 0], torch.zeros_like(logits[..., 0])
    probabilities = torch.softmax(logits, -1)
    levels = torch.arange(1, logits.shape[-1] + 1, dtype=torch.float64, device=logits.device)
    expected = (probabilities * levels).sum(-1)
    return expected, (probabilities * (levels - expected[..., None]) ** 2).sum(-1).sqrt()


def from_folder(
    where: str,
    folder: str | Path,
    max_tokens: int | None = None,
    levels: int | None = None,
    training: bool = False,
) -> PreferenceModel:
    """The reward model in a folder, or of a hub name. levels: of its head, a new one where it has
    none of that size. training: in float32, whatever it is kept in, for small steps on bfloat16
    weights round to nothing.

    InputError naming `where`: nothing that transformers opens, weights that do not fit, or a
    language model asked to score without `levels`.
    """
    # Here, as in `scoring_config`: each process that imports this file without opening a reward
    # model would wait 1.5 s for them.
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    config = scoring_config(where, folder, levels)
    if config.model_type == "rxt_reward":
        return MemoryPreferenceModel(
            read_model(RxTRewardModel, where, folder), ConversationTokenizer.load(folder)
        )
    labels: dict[str, Any] = {} if levels is None else {"num_labels": levels}
    labels |= {"dtype": torch.float32} if training else {}
    name, commit = split_pin(str(folder))
    module = pretrained(
        AutoModelForSequenceClassification,
        where,
        name,
        commit or "main",
        _new_head(levels),
        **labels,
    )
    with naming(where):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=commit or "main")
    if levels is not None:
        if not (_scores(config) and config.num_labels == levels):
            draw_head(module)
        # Kept with the model: its outputs are levels 1…K, and not labels of a classifier
        # (labels.py).
        module.config.levels = levels
    return TextPreferenceModel(module, tokenizer, max_tokens)


def fitting_config(where: str, folder: str | Path, levels: int | None = None) -> Any:
    """The configuration of what `from_folder` would open. Raises InputError as it does, of weights
    in a folder too, without reading what they hold."""
    from transformers import AutoModelForSequenceClassification

    config = scoring_config(where, folder, levels)
    if config.model_type != "rxt_reward":
        labels = {} if levels is None else {"num_labels": levels}
        name, _ = split_pin(str(folder))
        require_weights(
            AutoModelForSequenceClassification, where, name, _new_head(levels), **labels
        )
    return config


def _new_head(levels: int | None) -> Callable[[Any, str], bool]:
    """Whether a weight may be drawn: of a head that is made anew, and of the layer that pools what
    it reads, which language models lack."""

    def is_new(model: Any, key: str) -> bool:
        body = f"{model.base_model_prefix}."
        return levels is not None and (not key.startswith(body) or ".pooler." in key)

    return is_new


def scoring_config(where: str, folder: str | Path, levels: int | None = None) -> Any:
    """The configuration of what `from_folder` would open, without its weights. Raises InputError as
    it does."""
    from common.models.reactive.auto import AutoConfig

    name, commit = split_pin(str(folder))
    require_nameable(where, name)
    with naming(where):
        config = AutoConfig.from_pretrained(name, revision=commit or "main")
    if config.model_type == "rxt_reward" and levels not in (None, config.levels):
        raise InputError(where, f"is a reward model of {config.levels} levels, not {levels}")
    if config.model_type == "rxt":
        raise InputError(
            where, "is a policy, not a reward model: train one from it with the stage reward_model"
        )
    if config.model_type != "rxt_reward" and levels is None and not _scores(config):
        raise InputError(
            where,
            f"has no head that scores: it is a {', '.join(config.architectures or ['model'])}",
        )
    return config


def _scores(config: Any) -> bool:
    return any("SequenceClassification" in name for name in config.architectures or ())


def draw_head(module: PreTrainedModel) -> None:
    """A new head: N(0, 1 / sqrt(width + 1)), bias 0, as in lm-human-preferences (Ziegler 2019)."""
    for name in ("score", "classifier"):
        head = getattr(module, name, None)
        layers = (
            [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
            if isinstance(head, nn.Module)
            else []
        )
        if layers:
            nn.init.normal_(layers[-1].weight, std=(layers[-1].in_features + 1) ** -0.5)
            if layers[-1].bias is not None:
                nn.init.zeros_(layers[-1].bias)
            return
