"""From the `data` section of a configuration to the conversations of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.config.schema import Data, SynthData
from common.data import synth
from common.episode import Interaction, Row


@dataclass(frozen=True, slots=True)
class Corpus:
    """All text of a run. No conversation stands in two of the splits."""

    train: list[Row]
    eval: list[Row]
    """To tune on, and for the figures during a run."""
    test: list[Row]
    """For the final figure only; empty where the source has none."""
    texts: list[str]
    """For joint LM pre-training and for training the tokenizer."""
    pairs: list[Interaction]
    """For SFT."""


def load_corpus(data: Data, seed: int) -> Corpus:
    """Read or generate the corpus that `data` names; the same settings and seed give the same corpus."""
    if isinstance(data, SynthData):
        splits = synth.generate(data, seed)
        return corpus_of(splits["train"], splits["eval"], splits["test"])
    raise NotImplementedError(data.kind)


def corpus_of(train: list[Row], eval: list[Row], test: list[Row], texts: Sequence[str] = (), pairs: Sequence[Interaction] = ()) -> Corpus:
    """A corpus whose texts and pairs are the training conversations' interactions where none are given."""
    told = [turn for row in train for turn in row.turns]
    lines = texts or [part for turn in told for part in (turn.query, turn.answer)]
    return Corpus(train, eval, test, list(lines), list(pairs or told))
