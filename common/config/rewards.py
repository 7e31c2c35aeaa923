"""What answers are worth: components, their mixes, and the workers that score. A part of `schema.py`'s run."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from common.config.section import Section

Smoothing = Literal[
    "method0", "method1", "method2", "method3", "method4", "method5", "method6", "method7", "none", "floor", "add-k", "exp"
]  # fmt: skip


class Bleu(Section):
    weight: float = Field(0.4, ge=0)
    """Share of the total; weights are relative to those of the components that apply to a turn, so they need not sum to 1."""
    order: int = Field(2, ge=1, le=4)
    """Longest n-gram counted."""
    order_weights: tuple[float, ...] | None = None
    """Weight of each n-gram order; None: uniform. Only with NLTK's smoothing methods."""
    smoothing: Smoothing = "method4"
    """method0-7 as in NLTK (Chen and Cherry 2014), or sacrebleu's none, floor, add-k, exp with effective order."""
    reference: float = Field(1.0, ge=0)
    """Weight of BLEU against the reference answer, relative to `saved`."""
    saved: float = Field(0.0, ge=0)
    """Weight of BLEU against the saved (earlier) interaction; of one minus it where the topic changes."""

    @model_validator(mode="after")
    def _consistent(self) -> Bleu:
        if self.reference + self.saved == 0:
            raise ValueError("reference and saved are both 0: BLEU would compare with nothing")
        if self.order_weights is not None and len(self.order_weights) != self.order:
            raise ValueError(f"order_weights has {len(self.order_weights)} values for order {self.order}")
        if self.order_weights is not None and not self.smoothing.startswith("method"):
            raise ValueError(f"smoothing {self.smoothing!r} weighs all orders alike; leave order_weights out")
        if self.smoothing == "method6" and self.order < 3:
            raise ValueError("smoothing 'method6' needs order 3 or more")
        return self


class Cosine(Section):
    weight: float = Field(0.2, ge=0)
    """As for BLEU."""
    reference: float = Field(0.5, ge=0)
    """Weight of the reference answer, relative to `saved` and `running`."""
    saved: float = Field(0.3, ge=0)
    """Weight of the saved (earlier) interaction; of one minus it where the topic changes."""
    running: float = Field(0.2, ge=0)
    """Weight of the running mean over earlier interactions (subtracted from one in the long-range comparison)."""
    decay: float = Field(0.2, ge=0, lt=1)
    """Share of the running mean that stays when the next interaction enters it."""

    @model_validator(mode="after")
    def _consistent(self) -> Cosine:
        if self.reference + self.saved == 0:
            raise ValueError("reference and saved are both 0: a first turn, which has no running mean, would compare with nothing")
        return self


class Length(Section):
    weight: float = Field(0.1, ge=0)
    """As for BLEU."""
    target: int | None = Field(None, ge=1)
    """Rewarded length in tokens without special ones; None: the reference's."""
    penalty: bool = True
    """Whether answers past the target lose (target / length) instead of keeping 1."""


class Recall(Section):
    weight: float = Field(0.3, ge=0)
    """As for BLEU. On a turn that asks for no fact, recall does not apply."""
    false_recall: float = Field(0.5, ge=0)
    """Subtracted share, among the values standing in the answer, of those that were never told or are out of date."""


class Repetition(Section):
    weight: float = Field(0.1, ge=0)
    """As for BLEU."""
    order: int = Field(3, ge=1, le=8)
    """Length of the n-grams whose distinct share is rewarded."""


class Format(Section):
    weight: float = Field(0.1, ge=0)
    """As for BLEU."""
    pattern: str
    """Regular expression that the whole answer must match to earn 1."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return pattern


class ExactMatch(Section):
    weight: float = Field(0.5, ge=0)
    """As for BLEU."""
    words_only: bool = True
    """Whether lower-cased words are compared, and not every character."""


class FunctionReward(Section):
    """A function of yours: `def NAME(turn, **arguments)` returns a number, or None where it does not apply."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the component in episodes and metrics."""
    path: str
    """FILE.py:NAME or package.module:NAME, on every node that runs reward workers."""
    weight: float = Field(0.5, ge=0)
    """As for BLEU."""
    arguments: dict[str, Any] = Field({})
    """Keyword arguments that the function is called with."""
    deadline: float = Field(10, gt=0)
    """Seconds for one turn; a turn that takes longer is failed, the others are not."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class EndpointReward(Section):
    """An HTTP endpoint that scores batches of turns (reward_service/endpoint.py)."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the component in episodes and metrics."""
    url: str = Field(pattern=r"^https?://")
    """Where turns are posted to."""
    weight: float = Field(0.5, ge=0)
    """As for BLEU."""
    batch: int = Field(64, ge=1)
    """Turns per request."""
    deadline: float = Field(10, gt=0)
    """Seconds for one request."""


class RewardMix(Section):
    """Components of one strategy; a component that is absent is not computed."""

    bleu: Bleu | None = Bleu()
    """BLEU of the answer, on token ids."""
    cosine: Cosine | None = Cosine()
    """Cosine of mean token embeddings, of the frozen model that MRL started from."""
    length: Length | None = Length()
    """Whether the answer is about as long as it should be."""
    recall: Recall | None = Recall()
    """Whether the facts asked for stand in the answer."""
    repetition: Repetition | None = None
    """Whether the answer does not repeat itself."""
    format: Format | None = None
    """Whether the answer has a form."""
    exact_match: ExactMatch | None = None
    """Whether the answer is the reference."""
    functions: tuple[FunctionReward, ...] = ()
    """Components by functions of yours."""
    endpoints: tuple[EndpointReward, ...] = ()
    """Components by HTTP endpoints."""

    def weights(self) -> dict[str, float]:
        """Weight of each component, by its name in episodes."""
        built_in = ("bleu", "cosine", "length", "recall", "repetition", "format", "exact_match")
        own = {name: getattr(self, name).weight for name in built_in if getattr(self, name) is not None}
        return own | {part.name: part.weight for part in self.own()}

    def own(self) -> tuple[FunctionReward | EndpointReward, ...]:
        """Components that are not built in."""
        return (*self.functions, *self.endpoints)

    @model_validator(mode="after")
    def _rewards_something(self) -> RewardMix:
        weights = self.weights()
        if not any(weight > 0 for weight in weights.values()):
            raise ValueError("no component has a weight above 0")
        names = [part.name for part in self.own()]
        for name in names:
            if names.count(name) > 1 or name in type(self).model_fields:
                raise ValueError(f"two components are named {name!r}")
        return self


class Rewards(Section):
    single: RewardMix = RewardMix()
    """Conversations of one follow-up."""
    cumulative: RewardMix = RewardMix()
    """Conversations that go on about what was said before."""
    long_term: RewardMix = RewardMix()
    """Conversations that change the topic and come back to the first at their end."""
    first_turn: RewardMix | None = None
    """Mix of the first answered turn, before there is a running mean; None: the strategy's own."""
    topic_change: RewardMix | None = None
    """Mix of the first answered turn of the long-term strategy; None: the strategy's own."""
    scale: float = Field(1.0, gt=0)
    """The total is multiplied by this."""
    symmetric: bool = False
    """Map the total from [0, 1] to [-1, 1] before scaling."""
    workers: int = Field(1, ge=1)
    """Actors that score."""
    batch: int = Field(64, ge=1)
    """Episodes per scoring call."""
    deadline: float = Field(60, gt=0)
    """Seconds for one scoring call."""
    retries: int = Field(3, ge=0)
    """Further tries on another worker after an infra failure."""
