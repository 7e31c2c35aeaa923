"""Settings of the stages that train a causal language model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from common.config.mrl import MRL, CurriculumStep
from common.config.stages import Optimizer, SupervisedStage


class LMText(SupervisedStage):
    """Next-token prediction on texts. Longer ones are cut into pieces of the longest sequence."""

    measures = ("train/accuracy_lm", "train/loss_lm")
    policies = frozenset({"causal"})

    stage: Literal["lm_text"]
    """Which stage this is."""
    optimizer: Optimizer = Optimizer(learning_rate=1e-4)
    """Optimiser of the model, or of its adapters."""


class LMSFT(SupervisedStage):
    """Supervised fine-tuning of a causal language model: the loss is on answers, the token that
    ends them included, and not on prompts."""

    measures = ("train/accuracy_lm", "train/loss_lm")
    policies = frozenset({"causal"})

    stage: Literal["lm_sft"]
    """Which stage this is."""
    examples: Literal["interactions", "conversations"] = "interactions"
    """interactions: single ones, each answered without any memory. conversations: each answer after
    what the policy remembers of the conversation before it. One with `model.causal.text_memory`
    also learns to write: after each turn a memory that holds what was told so far, one statement a
    line, without those that a later one replaced."""
    optimizer: Optimizer = Optimizer(learning_rate=1e-4)
    """Optimiser of the model, or of its adapters."""


class LMRL(MRL):
    """Reinforcement learning of a causal language model: prompts are answered, answers are paid,
    and the model learns from them. Synchronous, and the same in everything else as MRL."""

    policies = frozenset({"causal"})

    stage: Literal["lm_rl"]  # type: ignore[assignment]
    """Which stage this is."""
    iterations: int = Field(100, ge=1)
    """Batches of episodes collected and learnt from, where `curriculum` is left out."""
    curriculum: tuple[CurriculumStep, ...] = Field((), min_length=1)
    """As in MRL. Left out: one step of `iterations` over all rows, episodes of `max_turns` answers
    at most."""
    max_turns: int = Field(1, ge=1)
    """Follow-ups of the longest row that takes part, or answers after which an environment that
    plays no rows is cut off, where `curriculum` is left out."""
    optimizer: Optimizer = Optimizer(learning_rate=3e-5, warmup_fraction=0.0, final_fraction=1.0)
    """Optimiser for the policy, or for its adapters."""

    @model_validator(mode="before")
    @classmethod
    def _one_step(cls, settings: Any) -> Any:
        if not isinstance(settings, dict) or settings.get("curriculum"):
            return settings
        count = settings.get("iterations", cls.model_fields["iterations"].default)
        turns = settings.get("max_turns", cls.model_fields["max_turns"].default)
        step = {"name": "prompts", "iterations": count, "max_steps": turns}
        return settings | {"curriculum": [step]}
