"""Settings of what the turns of a conversation weigh in a loss."""

from __future__ import annotations

from pydantic import Field

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

    def of(self, turn: Interaction) -> float:
        if turn.facts or turn.role == "recall":
            return self.recall
        return self.told if turn.role == "remember" else self.other
