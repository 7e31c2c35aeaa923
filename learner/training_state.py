"""Content of a checkpoint beside its tensors: where the run stands, and what its stage goes on
from.

Values of their owners (totals of the metrics, an algorithm's, the scorer's in `RolloutState`) are
kept as their owners give them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from common.failures import InputError
from common.storage.checkpoint import MANIFEST, Checkpoint
from learner.curriculum import CurriculumState
from learner.stages.until import UntilState
from rollout.iterations import RolloutState


@dataclass(frozen=True, slots=True)
class Best:
    """The best weights of a stage so far."""

    quality: float
    """On held-out conversations (`QUALITY` of learner/evaluation/curriculum.py)."""
    step: int
    """Steps of the run when they were saved; `checkpoints/best` names that checkpoint."""


@dataclass(frozen=True, slots=True)
class RLState:
    """Inside a stage with rollouts."""

    kl_coefficient: float
    algorithm: Mapping[str, Any]
    curriculum: CurriculumState
    rollout: RolloutState
    best: Best | None = None
    """None where nothing was measured."""

    def to_json(self) -> dict[str, Any]:
        return {
            "kl_coefficient": self.kl_coefficient,
            "algorithm": dict(self.algorithm),
            "curriculum": self.curriculum.to_json(),
            "rollout": self.rollout.to_json(),
            "best": None if self.best is None else [self.best.quality, self.best.step],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        best = record.get("best")
        return cls(
            float(record["kl_coefficient"]),
            record["algorithm"],
            CurriculumState.from_json(record["curriculum"]),
            RolloutState.from_json(record["rollout"]),
            None if best is None else Best(*best),
        )


@dataclass(frozen=True, slots=True)
class TrainingState:
    """State of a whole run."""

    stage: int
    """Index in the run."""
    stage_name: str
    done: int
    """Steps or iterations of the stage that are finished."""
    metrics: Mapping[str, Any] | None = None
    """Totals of the metrics; None before the first step."""
    rl: RLState | None = None
    """None in a supervised stage."""
    until: UntilState | None = None
    """None in a stage without `until`."""
    ended: bool = False
    """Whether the stage is over, whatever number of steps its settings have."""
    phases: int = 0
    """Phases of the stage, by `unfreeze` or `decoder_only_steps`, that have begun in it."""

    def until_in(self, stage: int) -> UntilState | None:
        """State of the condition of stage number `stage`; None where the stage has not begun."""
        return self.until if self.stage == stage else None

    def phases_in(self, stage: int) -> int:
        """Phases that have begun in stage number `stage`; 0 where it has not."""
        return self.phases if self.stage == stage else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "stage_name": self.stage_name,
            "done": self.done,
            "metrics": self.metrics,
            "rl": None if self.rl is None else self.rl.to_json(),
            "until": None if self.until is None else self.until.to_json(),
            "ended": self.ended,
            "phases": self.phases,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        # Checkpoints from before `until` lack it, and `ended` with it; `phases` came later still.
        rl, until = record["rl"], record.get("until")
        return cls(
            int(record["stage"]),
            record["stage_name"],
            int(record["done"]),
            record["metrics"],
            None if rl is None else RLState.from_json(rl),
            None if until is None else UntilState.from_json(until),
            bool(record.get("ended", False)),
            int(record.get("phases", 0)),
        )

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        """InputError where a checkpoint holds a model and no state of a run."""
        try:
            return cls.from_json(checkpoint.state)
        except (KeyError, TypeError, ValueError, AttributeError) as broken:
            raise InputError(
                f"{checkpoint.where}/{MANIFEST}",
                f"holds no state of training ({type(broken).__name__}: {broken})",
            ) from broken


@dataclass(frozen=True)
class Position:
    """Steps done in the current stage and before it."""

    stage: int
    in_stage: int
    base: int
    """Steps of the run that earlier stages took."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, stage: int) -> Position:
        """The position that `checkpoint` leaves stage number `stage` at: somewhere inside it, or at
        its beginning."""
        state = TrainingState.of(checkpoint)
        inside = state.done if state.stage == stage else 0
        return cls(stage, inside, checkpoint.step - inside)
