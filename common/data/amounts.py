"""Whether there are enough data to learn from."""

from __future__ import annotations

from collections.abc import Collection

from common.data.corpus import Corpus
from common.text.counted import counted

FEW = 1000
"""Conversations, or groups of preferences, below which a new model is expected to learn by heart
what it is trained on. The demo has 16,000, of a small world."""


def too_few(count: int, unit: str) -> str | None:
    """A warning for `count` records to train a new model on; None where they may be enough.

    unit: name of the records, in the plural.
    """
    if count >= FEW:
        return None
    of_them = counted(count, unit)
    return (
        f"few data: {of_them}. Below {FEW:,}, expect a new model to know these by heart and "
        "to fail on others: add more, or start from a checkpoint (model.checkpoint)"
    )


def few_data(corpus: Corpus, parts: Collection[str]) -> list[str]:
    """Warnings for a run that trains a new model. parts: of the corpus, that its stages learn
    from."""
    counts = {
        "train": (len(corpus.train), "training conversations"),
        "preferences": (
            len({each.group for each in corpus.preferences}),
            "preference groups",
        ),
    }
    found = [too_few(*counts[part]) for part in counts if part in parts]
    return [warning for warning in found if warning is not None]
