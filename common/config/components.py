"""Settings of each reward component. The component itself, which computes values from them, is a
file in `reward_service/components/`; `reward_service/components/table.py` joins the two."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from common.config.locations import FunctionSource, ModelSource
from common.config.section import Section

Smoothing = Literal[
    "method0", "method1", "method2", "method3", "method4", "method5", "method6", "method7", "none",
    "floor", "add-k", "exp"
]  # fmt: skip


class Component(Section):
    """Settings of every component; each names its own default weight."""

    weight: float = Field(0.1, ge=0)
    """Share of the total; weights are relative to those of the components that apply to a turn, so
    they need not sum to 1."""
    clip: tuple[float, float] | None = None
    """Raw values are held to this range, [low, high], before they are normalised and weighed."""
    normalise: bool = False
    """Count in standard deviations from the mean, by what the iterations of MRL before this one saw
    of the component: so that components of other ranges can be mixed. The first iteration counts
    raw values."""

    @field_validator("clip")
    @classmethod
    def _is_a_range(cls, clip: tuple[float, float] | None) -> tuple[float, float] | None:
        if clip is not None and not clip[0] < clip[1]:
            raise ValueError("the low end should lie below the high one")
        return clip

    def width(self) -> float:
        """Width of the range that it counts in: its clip, else [0, 1]; a standard deviation where
        it is normalised."""
        return self.clip[1] - self.clip[0] if self.clip is not None and not self.normalise else 1.0

    @property
    def described(self) -> str:
        """For messages."""
        return type(self).__name__

    @property
    def reads(self) -> str:
        """File, model or URL that the component uses, as a plan shows it; empty: none."""
        return ""

    def call_seconds(self) -> dict[tuple[str, ...], float]:
        """Seconds that it may add to a scoring call, by the process that takes them."""
        return {}

    def patience_seconds(self) -> dict[str, float]:
        """Seconds that a batch may wait for a service that is away, by the service."""
        return {}

    def request_seconds(self) -> float:
        """Seconds of one request within a scoring call, which must be fewer than those of the
        call."""
        return 0.0


class NamedComponent(Component):
    """Base of components of which a mix may hold several."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the component in episodes and metrics."""


class Bleu(Component):
    weight: float = Field(0.4, ge=0)
    """Share of the total."""
    order: int = Field(2, ge=1, le=4)
    """Longest n-gram counted."""
    order_weights: tuple[float, ...] | None = None
    """Weight of each n-gram order; None: uniform. Only with NLTK's smoothing methods."""
    smoothing: Smoothing = "method4"
    """method0-7 as in NLTK (Chen and Cherry 2014), or sacrebleu's none, floor, add-k, exp with
    effective order."""
    reference: float = Field(1.0, ge=0)
    """Weight of BLEU against the reference answer, relative to `saved`."""
    saved: float = Field(0.0, ge=0)
    """Weight of BLEU against the saved (earlier) interaction. Where the topic changes, one minus
    that BLEU counts."""
    combined: bool = False
    """One score with both as references, instead of two scores weighed by `reference` and
    `saved`."""

    @model_validator(mode="after")
    def _consistent(self) -> Bleu:
        if self.reference + self.saved == 0:
            raise ValueError("reference and saved are both 0: BLEU would compare with nothing")
        if self.order_weights is not None and len(self.order_weights) != self.order:
            raise ValueError(
                f"order_weights has {len(self.order_weights)} values for order {self.order}"
            )
        if self.order_weights is not None and not self.smoothing.startswith("method"):
            raise ValueError(
                f"smoothing {self.smoothing!r} weighs all orders alike; leave order_weights out"
            )
        if self.smoothing == "method6" and self.order < 3:
            raise ValueError("smoothing 'method6' needs order 3 or more")
        if self.combined and (self.reference == 0 or self.saved == 0):
            raise ValueError(
                "combined needs both reference and saved above 0: it is one score with both as "
                "references"
            )
        return self


class Cosine(Component):
    weight: float = Field(0.2, ge=0)
    """Share of the total."""
    reference: float = Field(0.5, ge=0)
    """Weight of the reference answer, relative to `saved` and `running`."""
    saved: float = Field(0.3, ge=0)
    """Weight of the saved (earlier) interaction. Where the topic changes, one minus its cosine
    counts."""
    running: float = Field(0.2, ge=0)
    """Weight of the running mean over earlier interactions. In the long-range comparison, one minus
    its cosine counts."""
    decay: float = Field(0.2, ge=0, lt=1)
    """Share of the running mean that stays when the next interaction enters it."""
    model: ModelSource | None = None
    """Folder (on every node that runs reward workers) or hub name of a sentence-transformers model
    whose embeddings are compared. None: mean token embeddings of the model that MRL starts from.
    Needs the extra `sentence`. Pinned like the path of a reward model."""

    @property
    def reads(self) -> str:
        return self.model or ""

    @model_validator(mode="after")
    def _consistent(self) -> Cosine:
        if self.reference + self.saved == 0:
            raise ValueError(
                "reference and saved are both 0: a first turn, which has no running mean, would "
                "compare with nothing"
            )
        return self


class Length(Component):
    weight: float = Field(0.1, ge=0)
    """Share of the total."""
    target: int | None = Field(None, ge=1)
    """Rewarded length in tokens without special ones; None: the reference's."""
    penalty: bool = True
    """Whether answers longer than the target earn target / length instead of 1."""


class Recall(Component):
    weight: float = Field(0.3, ge=0)
    """Share of the total. On a turn that asks for no fact, recall does not apply."""
    false_recall: float = Field(1.0, ge=0)
    """Subtracted for each value too many or too few, relative to the larger of the numbers of named
    and of asked values (docs/rewards.md)."""


class Repetition(Component):
    weight: float = Field(0.1, ge=0)
    """Share of the total."""
    order: int = Field(3, ge=1, le=8)
    """Length of n-grams. The reward is the share of distinct ones."""


class Leak(Component):
    weight: float = Field(0.3, ge=0)
    """Share of the total, of answers that ask for no fact."""


class Format(Component):
    weight: float = Field(0.1, ge=0)
    """Share of the total."""
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


class ExactMatch(Component):
    weight: float = Field(0.5, ge=0)
    """Share of the total."""
    words_only: bool = True
    """Compare lower-cased words instead of characters."""


class Thought(Component):
    weight: float = Field(0.1, ge=0)
    """Share of the total. On a turn whose reference has no thought, it does not apply."""
    order: int = Field(2, ge=1, le=4)
    """Longest n-gram counted in BLEU of the thought against the reference's, with the smoothing
    method4."""


class ThoughtLength(Component):
    weight: float = Field(0.1, ge=0)
    """Share of the total. On a turn without a thought, it does not apply."""
    words: int = Field(32, ge=1)
    """Words that a thought may have. One of so many or fewer earns 1, a longer one words / its
    length."""


class EnvironmentReward(Component):
    weight: float = Field(1.0, ge=0)
    """Share of the total. On a turn for which the environment gave no reward, it does not apply."""


class FunctionReward(NamedComponent):
    """A function of yours: `def NAME(turn, **arguments)`, also `async def`, returns a number, or
    None where it does not apply.

    It runs in a process of its own, and is called once before anything trains.
    """

    path: FunctionSource
    """FILE.py:NAME or package.module:NAME, on every node that runs reward workers."""
    weight: float = Field(0.5, ge=0)
    """Share of the total."""
    arguments: dict[str, Any] = Field({})
    """Keyword arguments that the function is called with."""
    deadline: float = Field(10, gt=0)
    """Seconds for one turn. A turn that takes longer fails, and the function's process is started
    anew."""
    load_deadline: float = Field(60, gt=0)
    """Seconds to import its file, each time that its process starts."""

    @property
    def reads(self) -> str:
        given = (f"{key}={value!r}" for key, value in self.arguments.items())
        return f"{self.path}({', '.join(['turn', *given])})"

    def call_seconds(self) -> dict[tuple[str, ...], float]:
        # By what it is loaded from: the same function in several mixes has one process.
        process = self.path, self.model_dump_json(include={"arguments"})
        return {process: self.deadline + self.load_deadline}

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class ModelReward(NamedComponent):
    """A reward model (stage `reward_model`, or any sequence classifier of transformers) that scores
    the answer."""

    path: ModelSource
    """A run that trained it, one of its checkpoints, or a folder or hub name that transformers
    opens. When a run starts it pins the path: in its config.yaml, `@` and a version follow, and
    only that version is used."""
    weight: float = Field(0.5, ge=0)
    """Share of the total."""
    unit: bool = True
    """Map the score to [0, 1]: the sigmoid of a scalar, (expected level - 1) / (levels - 1) of a
    discrete one. False: as it is."""
    label: str | None = None
    """Label of a text classifier whose value is the reward, as its configuration writes it.
    Required for a classifier with several labels. A reward model that was trained here has none."""
    read: Literal["logit", "log_odds", "probability"] = "probability"
    """Value of that label: its logit, log p / (1 - p), or p. `unit` does not apply to it."""
    serve: Literal["transformers", "vllm"] = "transformers"
    """Library that runs the model, inside the reward worker. vllm reads text, so it cannot serve a
    reward model with short-term memory."""
    batch_tokens: int = Field(16384, ge=1)
    """Tokens, padding included, in one forward pass."""

    @property
    def reads(self) -> str:
        return self.path

    @model_validator(mode="after")
    def _reads_a_label(self) -> ModelReward:
        # Not by what is set: a run's own configuration sets everything, defaults too.
        if self.read != type(self).model_fields["read"].default and self.label is None:
            raise ValueError("read says what pays of a label, and there is no label")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class EndpointReward(NamedComponent):
    """An HTTP endpoint that scores batches of turns (reward_service/components/endpoint.py)."""

    url: str = Field(pattern=r"^https?://")
    """URL that turns are posted to."""
    weight: float = Field(0.5, ge=0)
    """Share of the total."""
    batch: int = Field(64, ge=1)
    """Turns per request."""
    deadline: float = Field(10, gt=0)
    """Seconds for one request."""
    patience: float = Field(300, ge=0)
    """Seconds that a batch waits in all for an endpoint that is away. Then MRL stops with a
    checkpoint and exit code 75; an evaluation continues without rewards."""

    @property
    def reads(self) -> str:
        return self.url.partition("?")[0]

    @property
    def described(self) -> str:
        """For messages: without what follows "?", where keys stand."""
        return f"reward endpoint {self.name} at {self.url.partition('?')[0]}"

    def patience_seconds(self) -> dict[str, float]:
        return {self.described: self.patience}

    def request_seconds(self) -> float:
        return self.deadline

    @field_validator("url")
    @classmethod
    def _can_be_asked(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            bad = not parts.hostname or parts.port == 0 or "@" in parts.netloc
        except ValueError as error:
            raise ValueError(f"is no URL: {error}") from error
        if bad or not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError(
                "is no URL that can be asked: it should read http://HOST:PORT/PATH, in plain "
                "characters"
            )
        return url
