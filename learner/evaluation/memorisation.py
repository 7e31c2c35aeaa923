"""Whether a run learnt to remember, or only its training conversations by heart. Pure.

A model that has learnt its rows by heart answers them without memory, and looks like its control
with memory erased on rows that it has never seen. Its recall on training rows is perfect all the
same, and so are its losses: only the three figures together tell. Where nothing asks for facts, the
F1 of answers and references takes the place of recall.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from learner.evaluation.figures import Evaluation, Figure

KNOWN_BY_HEART = 0.9
"""Recall (or F1) of training conversations from which on they count as known."""
GAP = 0.1
"""Recall of held-out conversations lies at least so far below: with less, there was hardly anything
to learn by heart."""
HELP = 0.05
"""With memory, recall of held-out conversations is at most so much higher than without, or memory
is used."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Recall (or F1) over all its keys, with the interval that it lies in."""

    recall: float
    low: float
    high: float
    count: int
    """Facts asked for (or answers) that it is of."""

    def __str__(self) -> str:
        return f"{self.recall:.2f} ({self.low:.2f}–{self.high:.2f}, n = {self.count})"


def memorised(training: Mapping[str, Figure], found: Evaluation) -> str | None:
    """`learnt_by_heart` of the figures of training conversations and of an evaluation."""
    name = "recall" if found.counts else "f1"
    return learnt_by_heart(
        measured(training[name]),
        measured(found.figures[name]),
        measured(found.erased[name]),
        "F1" if name == "f1" else name,
    )


def measured(recall: Figure) -> Measured | None:
    """A figure over all its keys; None where it counts nothing."""
    if not recall.totals():
        return None
    low, high = recall.intervals()["all"]
    return Measured(recall.share()["all"], low, high, recall.totals()["all"])


def learnt_by_heart(
    train: Measured | None,
    held_out: Measured | None,
    erased: Measured | None,
    name: str = "recall",
) -> str | None:
    """Warning for a user whose model recalls training conversations, but held-out ones no better
    than with its memory erased.

    train: recall of a sample of training conversations; held_out, erased: of held-out ones with
    memory, and with memory erased before every query. All of the same weights and with the model's
    own answers. None for what asks nothing. name: what the figures are called. Returns None where
    there is nothing to say: where memory helps, where training conversations are not recalled
    either, and where held-out ones are recalled as well as those, with memory or without: then
    nothing was left to memory.
    """
    if train is None or held_out is None or erased is None:
        return None
    known = (
        train.recall >= KNOWN_BY_HEART
        and train.low > held_out.high
        and train.recall - held_out.recall >= GAP
    )
    surely_higher = held_out.low > erased.recall or held_out.recall > erased.high
    if not known or (surely_higher and held_out.recall - erased.recall > HELP):
        return None
    return (
        f"learnt by heart: {name} is {train} on training conversations, but {held_out} on held-out "
        f"ones, and {erased} there with memory erased: memory does not help. Train on more, or "
        "more varied, conversations"
    )
