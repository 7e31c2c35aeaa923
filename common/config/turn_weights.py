"""Settings of what the turns of a conversation weigh in a loss."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from common.config.section import Section
from common.episode import Interaction


class TurnWeights(Section):
    """Weights of the loss by what a turn is. An answer of weight 0 is not computed."""

    recall: float = Field(1.0, ge=0)
    """Weight of answers that name facts."""
    told: float = Field(1.0, ge=0)
    """Weight of replies to what is to be remembered. At 0, a model writes rubbish in reply to it,
    and into memory."""
    other: float = Field(1.0, ge=0)
    """Weight of all other answers."""
    sampled: bool = False
    """Whether an answer with a weight below 1 is computed in that share of the steps, with weight
    1, in place of every step: the same loss in expectation, at less work."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        over = {name: value for name, value in self if name != "sampled" and value > 1}
        if self.sampled and over:
            name, value = next(iter(over.items()))
            raise ValueError(
                f"{name} is {value:g}, and with `sampled` a weight is a share of steps"
            )
        return self

    def of(self, turn: Interaction) -> float:
        if turn.facts or turn.role == "recall":
            return self.recall
        return self.told if turn.role == "remember" else self.other
