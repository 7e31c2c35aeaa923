"""Settings of rewards: mixes of components, and the workers that score. A part of `run.py`'s
run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pydantic import Field, model_validator

from common.config.components import (
    Bleu,
    Component,
    Cosine,
    EndpointReward,
    EnvironmentReward,
    ExactMatch,
    Format,
    FunctionReward,
    Leak,
    Length,
    ModelReward,
    Recall,
    Repetition,
    Thought,
    ThoughtLength,
)
from common.config.section import Section
from common.episode import Strategy

TOTAL = "total"
"""Name of the weighted mean beside those of the components."""


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
    leak: Leak | None = None
    """Whether an answer that asks for no fact keeps those of the conversation to itself: 1, or -1
    where it names a value of an earlier topic."""
    repetition: Repetition | None = None
    """Whether the answer does not repeat itself."""
    format: Format | None = None
    """Whether the answer has a form."""
    exact_match: ExactMatch | None = None
    """Whether the answer is the reference."""
    thought: Thought | None = None
    """Whether a thought before the answer is like the reference's; all other components but the
    next look at the answer alone."""
    thought_length: ThoughtLength | None = None
    """Whether a thought before the answer is short enough."""
    environment: EnvironmentReward | None = None
    """Component that takes the reward that the environment gave for the answer."""
    functions: tuple[FunctionReward, ...] = ()
    """Components by functions of yours."""
    endpoints: tuple[EndpointReward, ...] = ()
    """Components by HTTP endpoints."""
    models: tuple[ModelReward, ...] = ()
    """Components by reward models."""

    def components(self) -> dict[str, Component]:
        """Every component that is there, by its name in episodes."""
        found: dict[str, Component] = {}
        for name, value in self:
            if isinstance(value, tuple):
                found |= {part.name: part for part in value}
            elif value is not None:
                found[name] = value
        return found

    def changed(self, change: Callable[[str, Component], Component | None]) -> RewardMix:
        """The mix with change(name, settings) in place of each component's settings; None drops the
        component. Not validated: no component may be left."""
        update: dict[str, Component | tuple[Component, ...] | None] = {}
        for key, value in self:
            if isinstance(value, tuple):
                several = (change(part.name, part) for part in value)
                update[key] = tuple(part for part in several if part is not None)
            elif value is not None:
                update[key] = change(key, value)
        return self.model_copy(update=update)

    def width(self) -> float:
        """Width of the range of the weighted mean."""
        parts = self.components().values()
        return sum(part.weight * part.width() for part in parts) / sum(
            part.weight for part in parts
        )

    @model_validator(mode="after")
    def _rewards_something(self) -> RewardMix:
        if not any(component.weight > 0 for component in self.components().values()):
            raise ValueError("no component has a weight above 0")
        several = (value for _, value in self if isinstance(value, tuple))
        names = [part.name for parts in several for part in parts]
        for name in names:
            if names.count(name) > 1 or name in type(self).model_fields:
                raise ValueError(f"two components are named {name!r}")
            if name == TOTAL:
                raise ValueError(f"a component is named {name!r}, which is the name of their mean")
        return self


class Rewards(Section):
    single: RewardMix = RewardMix()
    """Mix for conversations of one follow-up."""
    cumulative: RewardMix = RewardMix()
    """Mix for conversations that go on about what was said before, and for environments."""
    long_term: RewardMix = RewardMix()
    """Mix for conversations that change the topic and return to the first one at their end."""
    first_turn: RewardMix | None = None
    """Mix for the first answered turn, before there is a running mean. None: that of the
    strategy."""
    topic_change: RewardMix | None = None
    """Mix for the first answered turn of the strategy long_term. None: that of the strategy."""
    steps: dict[str, RewardMix] = Field(default_factory=dict)
    """Mixes for episodes of single steps of a curriculum, by the name of the step. They take the
    place of all those above."""
    turns_back: int = Field(1, ge=1)
    """Answers of cumulative conversations, and of the middle of long-term ones, are compared with
    the interaction so many turns before them; the opening where there are fewer. 1: the one
    before."""
    delayed: tuple[Strategy, ...] = ()
    """Strategies in which only the last answer earns: an answer before it has reward 0, or what it
    has below 0. Credit reaches those answers through discount and GAE, so the discount must be
    above 0."""
    scale: float = Field(1.0, gt=0)
    """Factor of the total."""
    symmetric: bool = False
    """Map the total from [0, 1] to [-1, 1] before scaling."""
    workers: int = Field(1, ge=1)
    """Least number of reward workers."""
    max_workers: int | None = Field(None, ge=1)
    """Largest number of reward workers. More are started while batches wait, and ended when idle.
    None: as many as `workers`."""
    queue_seconds: float = Field(1.0, gt=0)
    """Seconds that a batch waits for a free worker before another one is started."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs of each worker, for reward models. A fraction shares a GPU. 0: CPU."""
    node_labels: dict[str, str] = Field({})
    """Labels of the Ray nodes on which workers start, such as {group: reward}; empty: any node.
    A local cluster has none."""
    batch_tokens: int = Field(32768, ge=1)
    """Tokens of queries, answers and references in one scoring call. A longer episode has a call of
    its own."""
    deadline: float = Field(60, gt=0)
    """Seconds for one scoring call. The `deadline` and `load_deadline` of each function are added,
    so that one slow turn does not cost the others of the call."""
    start_deadline: float = Field(600, gt=0)
    """Seconds for a worker to load its functions and open its models, each time that it starts."""
    retries: int = Field(3, ge=0)
    """Further tries on other workers after an infra failure."""

    def mixes(self) -> dict[str, RewardMix]:
        """Every mix that is there, by its key."""
        optional = {"first_turn": self.first_turn, "topic_change": self.topic_change}
        return {
            "single": self.single,
            "cumulative": self.cumulative,
            "long_term": self.long_term,
            **{key: mix for key, mix in optional.items() if mix is not None},
            **{f"steps.{name}": mix for name, mix in self.steps.items()},
        }

    def with_mixes(self, mixes: Mapping[str, RewardMix]) -> Rewards:
        """The settings with these in place of their mixes, by the keys of `mixes`. Not
        validated."""
        steps = {name: mixes[f"steps.{name}"] for name in self.steps}
        own = {key: mix for key, mix in mixes.items() if not key.startswith("steps.")}
        return self.model_copy(update=own | {"steps": steps})

    def width(self) -> float:
        """How wide the range is that rewards of turns lie in, by the widest mix: `scale`, twice
        that where `symmetric`."""
        return (
            max(mix.width() for mix in self.mixes().values())
            * self.scale
            * (2 if self.symmetric else 1)
        )

    def components(self) -> Iterator[Component]:
        """Every component of every mix."""
        return (part for mix in self.mixes().values() for part in mix.components().values())

    def call_deadline(self) -> float:
        """Seconds after which a worker that has not returned from a scoring call is taken to
        hang."""
        allowed: dict[tuple[str, ...], float] = {}
        for part in self.components():
            for process, seconds in part.call_seconds().items():
                allowed[process] = max(allowed.get(process, 0.0), seconds)
        return self.deadline + sum(allowed.values())

    def outage_patience(self) -> float:
        """Seconds that services which are away may hold up a batch, one after another."""
        patience: dict[str, float] = {}
        for part in self.components():
            patience |= part.patience_seconds()
        return sum(patience.values())

    @model_validator(mode="after")
    def _consistent(self) -> Rewards:
        for part in self.components():
            if part.request_seconds() >= self.deadline:
                raise ValueError(
                    f"{part.described} has a deadline of {part.request_seconds():g} s, and "
                    "`rewards.deadline` ends the call that asks it after "
                    f"{self.deadline:g} s"
                )
        if self.max_workers is not None and self.max_workers < self.workers:
            raise ValueError(
                f"max_workers is {self.max_workers}, fewer than the {self.workers} workers that "
                "are always there"
            )
        if self.symmetric and any(part.normalise for part in self.components()):
            raise ValueError(
                "symmetric maps totals in [0, 1], and normalised components leave that range; "
                "choose one"
            )
        return self
