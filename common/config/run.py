"""Every setting of a run, typed, with its unit and source. `loader.py` reads it from YAML; nothing
else reads settings.

Sections are frozen. An unknown key is an error at the door, and no code below asks for a setting
with a default of its own. Each file here belongs to the part of the program that reads it."""

from __future__ import annotations

from pydantic import Field, model_validator

from common.config.data import Data, Tokenizer
from common.config.environment import CONVERSATION, EnvironmentSettings
from common.config.locations import Location
from common.config.model import Model
from common.config.rewards import Rewards
from common.config.rollout import Rollout
from common.config.section import Section
from common.config.stages import RewardModelStage, Stage


class Learner(Section):
    ranks: int = Field(1, ge=1)
    """Ray Train workers. One rank or many give the same gradients."""
    threads: int = Field(1, ge=1)
    """Torch threads of each rank on CPU."""
    gpus_per_rank: float = Field(0, ge=0)
    """0: on CPU."""
    max_failures: int = Field(3, ge=0)
    """Restarts of the learner group from the last checkpoint before the run fails."""
    checkpoint_every: int = Field(200, ge=1)
    """Steps between checkpoints; one is always written at the end of a stage."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints that stay; older ones are removed."""
    log_every: int = Field(10, ge=1)
    """Steps of a supervised stage between rows of metrics; MRL writes one per iteration."""
    batch_deadline: float = Field(600, gt=0)
    """Seconds a rank waits for its next batch of episodes."""
    start_deadline: float = Field(120, gt=0)
    """Seconds the learner group has to start."""


class Evaluation(Section):
    episodes: int = Field(200, ge=1)
    """Held-out conversations used."""


class Metrics(Section):
    port: int = Field(0, ge=0, le=65535)
    """Prometheus endpoint of the run; 0: any free port, written to RUN/metrics_endpoint."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets Prometheus on another machine scrape it."""


class Run(Section):
    """A whole run: what data, which model, which stages in order."""

    name: str
    """Names the run directory; started again under the same name, a run resumes."""
    runs: Location = Field("runs", validate_default=True)
    """Where run directories lie: a local folder or a URI that fsspec understands."""
    seed: int = Field(0, ge=0)
    """Everything random in a run derives from it."""
    data: Data
    """What to train and evaluate on."""
    tokenizer: Tokenizer = Tokenizer()
    """Trained on the data, or given."""
    model: Model = Model()
    """Shape of the model, or a checkpoint to start from."""
    stages: tuple[Stage, ...]
    """In order; each begins with the weights of the one before."""
    learner: Learner = Learner()
    """The ranks that train."""
    rollout: Rollout = Rollout()
    """The workers that play conversations in MRL."""
    environment: EnvironmentSettings = CONVERSATION
    """What episodes of MRL are played in."""
    rewards: Rewards = Rewards()
    """What answers are worth in MRL, and who scores them."""
    evaluation: Evaluation = Evaluation()
    """Held-out conversations before and after MRL."""
    metrics: Metrics = Metrics()
    """Where Prometheus finds the run."""

    @model_validator(mode="after")
    def _consistent(self) -> Run:
        kinds = [stage.stage for stage in self.stages]
        if "reward_model" in kinds[:-1]:
            raise ValueError(
                "reward_model comes last: what follows would train a reward model on, not a policy"
            )
        if "reward_model" in kinds and self.data.kind != "preferences":
            raise ValueError(
                f"the stage reward_model learns from data of kind preferences, not {self.data.kind}"
            )
        last = self.stages[-1] if self.stages else None
        if isinstance(last, RewardModelStage) and last.backbone is not None and len(kinds) > 1:
            raise ValueError(
                "the stages before reward_model train the run's own model, and its backbone is "
                f"{last.backbone}; leave one out"
            )
        return self
