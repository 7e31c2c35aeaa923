"""Settings of the stage that trains a reward model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config.causal import Lora
from common.config.locations import ModelSource
from common.config.stages import SupervisedStage


class RewardModelStage(SupervisedStage):
    """A reward model from preferences: of the run's RxT, which then reads memory, or of any model
    of transformers. It is the last stage of its run, and the run's checkpoints are reward models
    from there on."""

    measures = ("train/accuracy_preference", "train/loss_preference")
    needs_data = ("preferences",)
    leaves_policy = False
    fixed = frozenset({"stage", "backbone", "levels", "lora"})

    stage: Literal["reward_model"]
    """Which stage this is."""
    backbone: ModelSource | None = None
    """Folder or hub name of a model that transformers opens; None: the model that the stages before
    trained."""
    levels: int = Field(1, ge=1)
    """1: a scalar reward (Bradley–Terry); K: probabilities of scores 1…K, whose spread says how
    sure it is."""
    ranking: Literal["pairs", "best"] = "pairs"
    """How more than two answers of a prompt are compared: all pairs, or the best against the rest.
    Discrete scores know pairs only."""
    centering: float = Field(0.01, ge=0)
    """Coefficient of (chosen + rejected)², which keeps scalar rewards around 0."""
    max_tokens: int = Field(512, ge=8)
    """A text longer than this loses its beginning. An RxT reads whole interactions, up to
    model.max_tokens."""
    lora: Lora | None = None
    """Train low-rank updates and the head only; None: the whole reader."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between measurements on held-out preferences; one is always made at the end."""

    @property
    def own_model(self) -> str | None:
        return self.backbone
