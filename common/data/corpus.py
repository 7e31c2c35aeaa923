"""All text of a run, and how a data set makes it of its rows.

Whatever the source, no conversation stands in two splits: what is held out to tune on is chosen by
hash, and what a test file repeats is taken out of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from common.data.fingerprint import Source
from common.data.preferences import Preference
from common.data.splits import conversation_hash, fraction
from common.episode import Interaction, Row
from common.failures import InputError


@dataclass(frozen=True, slots=True)
class Corpus:
    """All text of a run."""

    train: list[Row]
    eval: list[Row]
    """To tune on, and for the figures during a run."""
    test: list[Row]
    """For the final figure only; empty where the source has none."""
    texts: list[str]
    """For joint LM pre-training and for training the tokenizer."""
    pairs: list[Interaction]
    """For SFT."""
    preferences: list[Preference] = field(default_factory=list)
    """For a reward model."""
    held_preferences: list[Preference] = field(default_factory=list)
    patterns: dict[str, list[Row]] = field(default_factory=dict)
    """Splits of one pattern of change each (common/data/datasets/synth.py)."""
    left_out: str = ""
    """A sentence on examples that are not among these, with their number; empty where none is."""
    files: tuple[Source, ...] = ()
    """Where the data came from, one by one, if the configuration names them so."""
    shorter: str = ""
    """A setting of the data under which interactions are shorter; empty where there is none."""

    def pairs_from_the_middle(self) -> list[bool]:
        """Whether each pair is from the middle of a conversation: it follows up in a training
        conversation, and opens none."""

        def said(turn: Interaction) -> tuple[str, str, str | None]:
            return turn.query, turn.answer, turn.think

        follow_ups = {said(turn) for row in self.train for turn in row.interactions}
        follow_ups -= {said(row.opening) for row in self.train}
        return [said(pair) in follow_ups for pair in self.pairs]

    def place(self, split: Literal["train", "eval"], index: int) -> str:
        """Where a conversation of a split stands: its file and row where the configuration names
        files, else its number in the split."""
        row = getattr(self, split)[index]
        for source in self.files:
            if source.unit == "conversations" and row.source in ("", source.name):
                for number, record in enumerate(source.records, 1):
                    if replace(record, source=row.source) == row:
                        return f"{source.name}, row {number}"
        return f"data.{split}, row {index + 1}"

    def place_of_preference(self, split: Literal["train", "eval"], index: int) -> str:
        """Where a preference of a split stands, as `place` says it."""
        preference = (self.preferences if split == "train" else self.held_preferences)[index]
        for source in self.files:
            if source.unit == "preferences" and preference in source.records:
                return f"{source.name}, row {source.records.index(preference) + 1}"
        return f"data.{split}, preference {index + 1}"

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that decides what the run learns from and is measured on, for `fingerprint`."""
        return self.files or tuple(
            Source("data", f"split {name}", "conversations", rows)
            for name, rows in (("train", self.train), ("eval", self.eval))
        )


def corpus_of(
    train: list[Row],
    eval_rows: list[Row],
    test: list[Row],
    texts: Sequence[str] = (),
    pairs: Sequence[Interaction] = (),
) -> Corpus:
    """A corpus whose texts and pairs are the interactions of its training conversations where none
    are given."""
    told = [turn for row in train for turn in row.turns]
    lines = texts or [part for turn in told for part in (turn.query, turn.answer)]
    return Corpus(train, eval_rows, test, list(lines), list(pairs or told))


def carved(keyed: list[tuple[str, Row]], test: list[Row], eval_fraction: float) -> Corpus:
    """Held-out rows carved from training rows by the hash of what must not be divided."""
    known = {conversation_hash(row) for row in test}
    new = [(key, row) for key, row in keyed if conversation_hash(row) not in known]
    held = [row for key, row in new if fraction(key) < eval_fraction]
    if not held:
        raise InputError(
            "data.eval_fraction",
            f"{eval_fraction} of {len(new)} conversations leaves none to tune on",
        )
    return corpus_of([row for key, row in new if fraction(key) >= eval_fraction], held, test)
