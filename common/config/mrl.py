"""Settings of Memory Reinforcement Learning and of its curriculum."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from common.config.algorithms import A2C, PPO, PolicyGradient, Reinforce
from common.config.section import Section
from common.config.stages import Optimizer, StageSettings


class CurriculumStep(Section):
    name: str
    """Unique in the curriculum; metrics and episodes are told apart by it."""
    iterations: int = Field(ge=1)
    """Batches of episodes collected and learnt from."""
    max_steps: int = Field(ge=1)
    """Rows with at most this many follow-ups take part; an environment that plays no rows is cut
    off after so many answers."""
    strategy: Literal["single", "cumulative", "long_term"] | None = None
    """Only rows of this strategy; None: all."""
    reset_probability: float = Field(1.0, ge=0, le=1)
    """Probability, per episode, of starting from fresh memory instead of one held from an earlier
    episode."""
    teacher_forcing: bool = False
    """Whether memory is written with the data set's answers in place of the generated ones."""


class MRL(StageSettings):
    """Stage 5: Memory Reinforcement Learning over a curriculum, synchronous."""

    batch_key = "episodes"
    needs_rollout = True
    fixed = frozenset({"stage", "ppo.critic.memory", "a2c.critic.memory"})

    stage: Literal["mrl"]
    """Which stage this is."""
    episodes: int = Field(64, ge=1)
    """Episodes per iteration over all ranks."""
    curriculum: tuple[CurriculumStep, ...] = Field(min_length=1)
    """Steps in order, each with a name of its own."""
    algorithm: Literal["ppo", "a2c", "reinforce"] = "ppo"
    """Algorithm that trains on the episodes; its settings are in the section of its name."""
    ppo: PPO = PPO()
    """Settings of PPO."""
    a2c: A2C = A2C()
    """Settings of A2C."""
    reinforce: Reinforce = Reinforce()
    """Settings of REINFORCE."""
    optimizer: Optimizer = Optimizer(learning_rate=3e-4, warmup_fraction=0.0, final_fraction=1.0)
    """Optimiser for the policy."""
    freeze_encoder: bool = False
    """Whether the encoder stays as it is."""
    router_loss: float = Field(0.01, ge=0)
    """Coefficient of the load-balancing loss of mixture-of-experts layers."""

    @property
    def algorithm_settings(self) -> PolicyGradient:
        """The section of the algorithm that is used."""
        settings: PolicyGradient = getattr(self, self.algorithm)
        return settings

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

    @property
    def total_steps(self) -> int:
        return sum(step.iterations for step in self.curriculum)

    @property
    def curriculum_steps(self) -> tuple[CurriculumStep, ...]:
        return self.curriculum

    @property
    def longest(self) -> int | None:
        return max((step.max_steps for step in self.curriculum), default=None)
