"""Settings of Memory Reinforcement Learning and of its curriculum."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from common.config.algorithms import (
    A2C,
    GRPO,
    PPO,
    RLOO,
    PolicyGradient,
    Reinforce,
    Rejection,
)
from common.config.locations import DataSource
from common.config.section import Section
from common.config.stages import Optimizer, StageSettings
from common.config.unfreeze import Phase, require_order
from common.episode import Strategy
from common.failures import nearest

TRAINED = ("objective/scores", "rollout/recall", "rollout/exact")
"""Figures of the episodes that an iteration learns from."""
HELD_OUT = ("curriculum/recall", "curriculum/exact")
"""Figures of held-out conversations of a step, measured every `evaluate_every` iterations."""


class CurriculumStep(Section):
    name: str
    """Unique in the curriculum; metrics and episodes are told apart by it."""
    iterations: int = Field(ge=1)
    """Batches of episodes collected and learnt from; with `until`, at most."""
    max_steps: int = Field(ge=1)
    """Rows with at most this many follow-ups take part; an environment that plays no rows is cut
    off after so many answers."""
    min_steps: int = Field(1, ge=1)
    """Rows with at least this many follow-ups take part; equal to `max_steps`: exactly so many."""
    strategy: Strategy | dict[Strategy, float] | None = None
    """Only rows of this strategy, or of several, drawn by weight: {cumulative: 0.7, long_term:
    0.3}. Rows that name no strategy are played by it too. None: all."""
    sources: tuple[DataSource, ...] = ()
    """Only rows of these files or names of `datasets`, which `data.train` and `data.eval` list too,
    or of these tasks of bAbI, such as `task 2`. Empty: all."""
    earlier: float = Field(0.0, ge=0, lt=1)
    """Share of episodes that rows of earlier steps are drawn for, from each of these alike, so that
    what was learnt there is not forgotten."""
    until: dict[str, float] = Field(default_factory=dict)
    """Metrics and the least values at which the step is over: objective/scores, rollout/recall and
    rollout/exact, of the episodes of an iteration, curriculum/recall and curriculum/exact, of
    held-out conversations of the step (see `evaluate_every`). Empty: after its iterations."""
    times: int = Field(1, ge=1)
    """Measurements in a row that must all be high enough."""
    patience: int | None = Field(None, ge=1)
    """Measurements in a row without a new best of any metric of `until` after which the step is
    given up: the run says so and goes on with the next one. None: never."""
    reset_probability: float = Field(1.0, ge=0, le=1)
    """Probability, per episode, of starting from fresh memory instead of one held from an earlier
    episode."""
    teacher_forcing: bool = False
    """Whether memory is written with the data set's answers in place of the generated ones."""
    learning_rate: float = Field(1.0, gt=0)
    """Factor of the policy's learning rate in this step."""

    def meets(self, name: str, value: float) -> bool:
        """Whether a value of a metric that `until` names is good enough."""
        return value >= self.until[name]

    @property
    def strategies(self) -> dict[Strategy | None, float]:
        """Share of each strategy; None stands for all rows."""
        if not isinstance(self.strategy, dict):
            return {self.strategy: 1.0}
        total = sum(self.strategy.values())
        return {name: weight / total for name, weight in self.strategy.items()}

    @field_validator("strategy")
    @classmethod
    def _has_weights(cls, strategy: Any) -> Any:
        if isinstance(strategy, dict) and not all(value > 0 for value in strategy.values()):
            raise ValueError("has a weight that is not above 0; leave that strategy out")
        if strategy == {}:
            raise ValueError("names no strategy; leave it out for all rows")
        return strategy

    @model_validator(mode="after")
    def _can_advance(self) -> CurriculumStep:
        if self.min_steps > self.max_steps:
            raise ValueError(
                f"min_steps is {self.min_steps}, more than the {self.max_steps} of max_steps"
            )
        for name, value in self.until.items():
            if name not in TRAINED + HELD_OUT:
                known = nearest(name, TRAINED + HELD_OUT)
                raise ValueError(f"until: {name!r} does not end a step; {known}")
            if name != "objective/scores" and not 0 < value <= 1:
                raise ValueError(f"until: {name} is a share, above 0 and up to 1, never {value:g}")
        if self.patience is not None and not self.until:
            raise ValueError("patience counts measurements of `until`, which is empty")
        return self


class MRL(StageSettings):
    """Stage 5: Memory Reinforcement Learning over a curriculum, synchronous."""

    batch_key = "episodes"
    needs_rollout = True
    fixed = frozenset({"stage", "algorithm", "ppo.critic.memory", "a2c.critic.memory"})
    replaced: ClassVar[dict[str, str]] = {"freeze_encoder": "unfreeze"}

    stage: Literal["mrl"]
    """Which stage this is."""
    episodes: int = Field(64, ge=1)
    """Episodes per iteration over all ranks."""
    curriculum: tuple[CurriculumStep, ...] = Field(min_length=1)
    """Steps in order, each with a name of its own. Or, for steps that differ in length alone, their
    lengths and what all of them share, as in {steps: exponential(16), iterations: 10}: `steps` is
    linear(N), for 1, 2, 3 to N follow-ups, exponential(N), for 1, 2, 4 to N, or a list of numbers.
    Their names are "up to N", or "exactly N" with `exactly: true`."""
    algorithm: Literal["ppo", "a2c", "reinforce", "rloo", "grpo", "rejection"] = "ppo"
    """Algorithm that trains on the episodes; its settings are in the section of its name."""
    ppo: PPO = PPO()
    """Settings of PPO."""
    a2c: A2C = A2C()
    """Settings of A2C."""
    reinforce: Reinforce = Reinforce()
    """Settings of REINFORCE."""
    rloo: RLOO = RLOO()
    """Settings of REINFORCE leave-one-out."""
    grpo: GRPO = GRPO()
    """Settings of GRPO."""
    rejection: Rejection = Rejection()
    """Settings of rejection sampling."""
    optimizer: Optimizer = Optimizer(learning_rate=3e-4, warmup_fraction=0.0, final_fraction=1.0)
    """Optimiser for the policy."""
    unfreeze: tuple[Phase, ...] = ()
    """Phases in order, each of which adds parts of the policy to those that learn; a part that none
    names stays as it is. Empty: all learn from the start."""
    router_loss: float = Field(0.01, ge=0)
    """Coefficient of the load-balancing loss of mixture-of-experts layers."""
    evaluate_every: int = Field(0, ge=0)
    """Iterations between measurements on held-out conversations, which rank 0 plays while the
    others wait; one is made before the first. The stage then ends with the weights that had the
    highest share of exact answers, the last of several, which `checkpoints/best` names; word F1
    with the references counts where no conversation asks for a fact. 0: none, and it ends with the
    last weights."""
    evaluate_conversations: int = Field(100, ge=1)
    """Held-out conversations of such a measurement, of any length in the curriculum, and as many of
    the present step where a rule of it asks for them."""

    @property
    def algorithm_settings(self) -> PolicyGradient:
        """The section of the algorithm that is used."""
        settings: PolicyGradient = getattr(self, self.algorithm)
        return settings

    @property
    def learns_by(self) -> str:
        settings = self.algorithm_settings
        if settings.samples == 1:
            return f"{self.algorithm}, one sample of each task"
        tasks = self.episodes // settings.samples
        return f"{self.algorithm}, {settings.samples} samples of each of {tasks:,} tasks a batch"

    @field_validator("curriculum", mode="before")
    @classmethod
    def _written_out(cls, curriculum: Any) -> Any:
        return steps_of(curriculum) if isinstance(curriculum, dict) else curriculum

    @field_validator("curriculum")
    @classmethod
    def _named_apart(cls, steps: tuple[CurriculumStep, ...]) -> tuple[CurriculumStep, ...]:
        names = [step.name for step in steps]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"has two steps named {twice!r}; metrics and episodes are told apart by that name"
            )
        return steps

    @model_validator(mode="after")
    def _has_whole_groups(self) -> MRL:
        samples = self.algorithm_settings.samples
        if self.episodes % samples:
            below = self.episodes - self.episodes % samples
            nearest_ones = f"{below} or {below + samples}" if below else f"{samples}"
            raise ValueError(
                f"episodes: {self.episodes} is no multiple of the {samples} samples of each task "
                f"({self.algorithm}.samples); take {nearest_ones}"
            )
        return self

    @model_validator(mode="after")
    def _measures(self) -> MRL:
        for step in self.curriculum:
            asked = next((name for name in step.until if name in HELD_OUT), None)
            if asked is not None and not self.evaluate_every:
                raise ValueError(
                    f"step {step.name!r} waits for {asked}, and evaluate_every is 0: it would "
                    "never be measured"
                )
        return self

    @field_validator("unfreeze")
    @classmethod
    def _in_order(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        require_order(phases)
        return phases

    @property
    def phases(self) -> tuple[Phase, ...]:
        return self.unfreeze

    @property
    def total_steps(self) -> int:
        return sum(step.iterations for step in self.curriculum)

    @property
    def may_end_early(self) -> bool:
        return any(step.until for step in self.curriculum)

    @property
    def credits_tokens(self) -> bool:
        return self.algorithm_settings.credits_tokens

    @property
    def curriculum_steps(self) -> tuple[CurriculumStep, ...]:
        return self.curriculum

    @property
    def longest(self) -> int | None:
        return max((step.max_steps for step in self.curriculum), default=None)


SCHEDULE = re.compile(r"(linear|exponential)\((\d+)\)")


def steps_of(written: dict[str, Any]) -> list[dict[str, Any]]:
    """The curriculum of {steps: exponential(16), …}, step by step. Raises ValueError where `steps`
    are no schedule."""
    shared = {key: value for key, value in written.items() if key not in ("steps", "exactly")}
    exactly = written.get("exactly", False)
    if not isinstance(exactly, bool):
        raise ValueError(f"exactly: {exactly!r} is neither true nor false")
    found = []
    for count in _lengths(written.get("steps")):
        own = {"name": f"{'exactly' if exactly else 'up to'} {count}", "max_steps": count}
        if exactly:
            own["min_steps"] = count
        found.append(own | shared)
    return found


def _lengths(steps: Any) -> list[int]:
    if isinstance(steps, (list, tuple)):
        if not steps or not all(type(count) is int and count > 0 for count in steps):
            raise ValueError("steps: give numbers of follow-ups, such as [1, 2, 4, 8]")
        return list(steps)
    written = SCHEDULE.fullmatch(str(steps).replace(" ", ""))
    if written is None:
        raise ValueError(
            f"steps: {steps!r} is no schedule; give linear(N), exponential(N) or a list of numbers"
        )
    kind, longest = written[1], int(written[2])
    if longest < 1:
        raise ValueError("steps: a conversation has one follow-up at least")
    if kind == "linear":
        return list(range(1, longest + 1))
    doubled = [2**power for power in range(longest.bit_length())]
    return doubled if doubled[-1] == longest else [*doubled, longest]
