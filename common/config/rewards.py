"""What answers are worth: components, their mixes, and the workers that score. A part of
`run.py`'s run."""

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
    """What every component has; each names its own default weight."""

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
        """Of the range that it counts in: its clip, else [0, 1]; a standard deviation where it is
        normalised."""
        return self.clip[1] - self.clip[0] if self.clip is not None and not self.normalise else 1.0


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
    """Weight of BLEU against the saved (earlier) interaction; of one minus it where the topic
    changes."""
    combined: bool = False
    """One score with both as references, whichever match better, in place of two scores weighed by
    `reference` and `saved`."""

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
    """Weight of the saved (earlier) interaction; of one minus it where the topic changes."""
    running: float = Field(0.2, ge=0)
    """Weight of the running mean over earlier interactions (subtracted from one in the long-range
    comparison)."""
    decay: float = Field(0.2, ge=0, lt=1)
    """Share of the running mean that stays when the next interaction enters it."""
    model: ModelSource | None = None
    """A sentence-transformers model, by folder (on every node that runs reward workers) or hub
    name, whose embeddings of the texts are compared; None: the mean of token embeddings of the
    model that MRL started from. Needs the extra `sentence`."""

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
    """Whether answers past the target lose (target / length) instead of keeping 1."""


class Recall(Component):
    weight: float = Field(0.3, ge=0)
    """Share of the total. On a turn that asks for no fact, recall does not apply."""
    false_recall: float = Field(1.0, ge=0)
    """Subtracted for each value beyond as many as were asked for, or left out, in shares of the
    larger number (docs/rewards.md): so hedging and evasion cost more than a wrong guess."""


class Repetition(Component):
    weight: float = Field(0.1, ge=0)
    """Share of the total."""
    order: int = Field(3, ge=1, le=8)
    """Length of the n-grams whose distinct share is rewarded."""


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
    """Whether lower-cased words are compared, and not every character."""


class Thought(Component):
    weight: float = Field(0.1, ge=0)
    """Share of the total. On a turn whose reference has no thought, it does not apply."""
    order: int = Field(2, ge=1, le=4)
    """Longest n-gram counted in BLEU of the thought against the reference's, with the smoothing
    method4."""


class FunctionReward(Component):
    """A function of yours: `def NAME(turn, **arguments)`, also `async def`, returns a number, or
    None where it does not apply.

    It runs in a process of its own, and is called once before anything trains.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the component in episodes and metrics."""
    path: FunctionSource
    """FILE.py:NAME or package.module:NAME, on every node that runs reward workers."""
    weight: float = Field(0.5, ge=0)
    """Share of the total."""
    arguments: dict[str, Any] = Field({})
    """Keyword arguments that the function is called with."""
    deadline: float = Field(10, gt=0)
    """Seconds for one turn; a turn that takes longer is failed, the others are not. Whatever the
    function does then, its process is ended and started again."""
    load_deadline: float = Field(60, gt=0)
    """Seconds for its file to be imported, each time that its process starts."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class ModelReward(Component):
    """A reward model (stage `reward_model`, or any sequence classifier of transformers) that scores
    the answer."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the component in episodes and metrics."""
    path: ModelSource
    """A run that trained it, one of its checkpoints, or a folder or hub name that transformers
    opens."""
    weight: float = Field(0.5, ge=0)
    """Share of the total."""
    unit: bool = True
    """Map the score to [0, 1]: the sigmoid of a scalar, (expected level - 1) / (levels - 1) of a
    discrete one. False: as it is."""
    label: str | None = None
    """Of a text classifier with several labels: the name of the one that pays, as its configuration
    writes it. Such a model is refused without one. A reward model that was trained here has
    none."""
    read: Literal["logit", "log_odds", "probability"] = "probability"
    """What pays of that label: its logit, log p / (1 - p), or p. `unit` changes none of them."""
    serve: Literal["transformers", "vllm"] = "transformers"
    """What runs the model, inside the reward worker. vllm reads text, so not a reward model with
    short-term memory."""
    batch_tokens: int = Field(16384, ge=1)
    """Tokens, padding included, in one forward pass."""

    @model_validator(mode="after")
    def _reads_a_label(self) -> ModelReward:
        # Not by what is set: a run's own configuration sets everything, defaults too.
        if self.read != type(self).model_fields["read"].default and self.label is None:
            raise ValueError("read says what pays of a label, and there is no label")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class EndpointReward(Component):
    """An HTTP endpoint that scores batches of turns (reward_service/components/endpoint.py)."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the component in episodes and metrics."""
    url: str = Field(pattern=r"^https?://")
    """Where turns are posted to."""
    weight: float = Field(0.5, ge=0)
    """Share of the total."""
    batch: int = Field(64, ge=1)
    """Turns per request."""
    deadline: float = Field(10, gt=0)
    """Seconds for one request."""
    patience: float = Field(300, ge=0)
    """Seconds that a batch waits, in all, for an endpoint that is away. Then MRL stops with a
    checkpoint and exit code 75, and an evaluation goes on without rewards."""

    @property
    def described(self) -> str:
        """For messages: without what follows "?", where keys stand."""
        return f"reward endpoint {self.name} at {self.url.partition('?')[0]}"

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


class EnvironmentReward(Component):
    weight: float = Field(1.0, ge=0)
    """Share of the total. On a turn for which the environment gave no reward, it does not apply."""


BUILT_IN = (
    "bleu", "cosine", "length", "recall", "repetition", "format", "exact_match", "thought",
    "environment",
)  # fmt: skip
"""Components with values between 0 and 1; recall goes below 0 for an answer that names too many
values or too few, and an environment pays what it likes."""


class RewardMix(Section):
    """Components of one strategy; a component that is absent is not computed."""

    bleu: Bleu | None = Bleu()
    """BLEU of the answer, on token ids."""
    cosine: Cosine | None = Cosine()
    """Cosine of frozen embeddings of the texts: of the model that MRL started from, or of one of
    sentence-transformers."""
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
    thought: Thought | None = None
    """Whether a thought before the answer is like the reference's; all other components look at the
    answer alone."""
    environment: EnvironmentReward | None = None
    """What the environment itself paid for the answer."""
    functions: tuple[FunctionReward, ...] = ()
    """Components by functions of yours."""
    endpoints: tuple[EndpointReward, ...] = ()
    """Components by HTTP endpoints."""
    models: tuple[ModelReward, ...] = ()
    """Components by reward models."""

    def components(self) -> dict[str, Component]:
        """Every component that is there, by its name in episodes."""
        present = {
            name: getattr(self, name) for name in BUILT_IN if getattr(self, name) is not None
        }
        return present | {part.name: part for part in self.named()}

    def named(self) -> tuple[FunctionReward | EndpointReward | ModelReward, ...]:
        """Components that are not built in."""
        return (*self.functions, *self.endpoints, *self.models)

    def width(self) -> float:
        """Of the range of the weighted mean."""
        parts = self.components().values()
        return sum(part.weight * part.width() for part in parts) / sum(
            part.weight for part in parts
        )

    @model_validator(mode="after")
    def _rewards_something(self) -> RewardMix:
        if not any(component.weight > 0 for component in self.components().values()):
            raise ValueError("no component has a weight above 0")
        names = [part.name for part in self.named()]
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
    """Actors that score, at least."""
    max_workers: int | None = Field(None, ge=1)
    """Actors that score, at most: more are started while batches wait, and ended when they are
    idle. None: as many as `workers`."""
    queue_seconds: float = Field(1.0, gt=0)
    """A batch that waits longer for a free actor has another one started."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs of each actor, for reward models; a fraction shares one. 0: on CPU."""
    batch_tokens: int = Field(32768, ge=1)
    """Tokens of queries, answers and references in one scoring call; an episode that has more goes
    by itself."""
    deadline: float = Field(60, gt=0)
    """Seconds for one scoring call. For each function, its `deadline` and `load_deadline` come on
    top: so one turn that takes too long, after which its process starts again, does not cost the
    others of the call."""
    start_deadline: float = Field(600, gt=0)
    """Seconds for a worker to load its functions and open its models, where it has any, each time
    that it starts."""
    retries: int = Field(3, ge=0)
    """Further tries on another worker after an infra failure."""

    def mixes(self) -> tuple[RewardMix, ...]:
        """Every mix that is there."""
        return tuple(
            mix
            for mix in (
                self.single,
                self.cumulative,
                self.long_term,
                self.first_turn,
                self.topic_change,
            )
            if mix is not None
        )

    def width(self) -> float:
        """How wide the range is that rewards of turns lie in, by the widest mix: `scale`, twice
        that where `symmetric`."""
        return max(mix.width() for mix in self.mixes()) * self.scale * (2 if self.symmetric else 1)

    def call_deadline(self) -> float:
        """Seconds after which a worker that has not returned from a scoring call is taken to
        hang."""
        # By what it is loaded from: the same function in several mixes has one process.
        allowed: dict[tuple[str, str], float] = {}
        for function in (function for mix in self.mixes() for function in mix.functions):
            process = function.path, function.model_dump_json(include={"arguments"})
            allowed[process] = max(
                allowed.get(process, 0.0), function.deadline + function.load_deadline
            )
        return self.deadline + sum(allowed.values())

    def outage_patience(self) -> float:
        """Seconds that endpoints which are away may hold up a batch, one after another."""
        return sum(
            {end.described: end.patience for mix in self.mixes() for end in mix.endpoints}.values()
        )

    @model_validator(mode="after")
    def _consistent(self) -> Rewards:
        for end in (end for mix in self.mixes() for end in mix.endpoints):
            if end.deadline >= self.deadline:
                raise ValueError(
                    f"endpoint {end.name} has a deadline of {end.deadline:g} s, and "
                    "`rewards.deadline` ends the call that asks it after "
                    f"{self.deadline:g} s"
                )
        if self.max_workers is not None and self.max_workers < self.workers:
            raise ValueError(
                f"max_workers is {self.max_workers}, fewer than the {self.workers} workers that "
                "are always there"
            )
        if self.symmetric and any(
            part.normalise for mix in self.mixes() for part in mix.components().values()
        ):
            raise ValueError(
                "symmetric maps totals in [0, 1], and normalised components leave that range; "
                "choose one"
            )
        return self
