"""Settings of stages that train parts of the model first and the rest later."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from common.config.section import Section
from common.failures import nearest
from common.models.reactive.parts import PARTS, Part


class Phase(Section):
    """Parts of the model that begin to learn together, and learn from then on. A phase begins no
    earlier than those above it in the list."""

    train: tuple[Part, ...] = Field(min_length=1)
    """Parts: memory_attention (a learned initial memory included), memory_cross_attention (that of
    the decoder, with its norms), encoder, decoder (without that, and with the head) and embedding,
    which encoder and decoder share."""
    after: int | None = Field(None, ge=0)
    """Steps of the stage, iterations in MRL, before the phase begins. None: it waits for
    `reward`."""
    reward: float | None = None
    """MRL only: the phase begins after an iteration whose mean weighted reward (objective/scores)
    is at least this, or after `after` iterations, whichever is first."""
    learning_rate: float = Field(1.0, gt=0)
    """Share of the optimiser's rate that these parts learn at."""

    @field_validator("train", mode="before")
    @classmethod
    def _known(cls, names: Any) -> Any:
        for name in names if isinstance(names, list | tuple) else ():
            if isinstance(name, str) and name not in PARTS:
                raise ValueError(f"{name!r} is no part of the model; {nearest(name, PARTS)}")
        return names

    @model_validator(mode="after")
    def _begins(self) -> Self:
        if self.after is None and self.reward is None:
            raise ValueError("the phase never begins; give after, or reward")
        return self


def require_order(phases: Sequence[Phase]) -> None:
    """Raises ValueError for phases that leave the first step nothing to train, name a part twice,
    or are not in the order in which they begin."""
    if phases and (phases[0].after != 0 or phases[0].reward is not None):
        raise ValueError("the first phase needs after: 0, and no reward: nothing learns before it")
    names = [part for phase in phases for part in phase.train]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is there twice; a part begins to learn once")
    steps = [phase.after for phase in phases if phase.after is not None]
    for earlier, later in itertools.pairwise(steps):
        if later < earlier:
            raise ValueError(
                f"a phase after {later} follows one after {earlier}; phases go in order"
            )
