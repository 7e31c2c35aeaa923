"""Whether there are enough data to learn from."""

from __future__ import annotations

FEW = 1000
"""Conversations, or groups of preferences, below which a new model is expected to learn what it is
trained on by heart. The demo has 15,000, of a world of a few hundred sentences."""


def too_few(count: int, unit: str) -> str | None:
    """A warning for `count` training records of a new model; None where there are enough.

    unit: name of the records, in the plural.
    """
    if count >= FEW:
        return None
    return (
        f"{count} {unit} are too few to teach a new model: with fewer than {FEW:,} expect it to "
        f"know these by heart, and others hardly better than by guessing; add {unit}, generate "
        "more (`engram data synth`), or start from a checkpoint (model.checkpoint)"
    )
