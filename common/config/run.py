"""Every setting of a run, typed, with its unit and source. `loader.py` reads it from YAML; nothing
else reads settings.

Sections are frozen. An unknown key is an error at the door, and no code below asks for a setting
with a default of its own. Each file here belongs to the part of the program that reads it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from common.config.components import FunctionReward, ModelReward
from common.config.data import Data, Tokenizer
from common.config.environment import CONVERSATION, EnvironmentSettings
from common.config.lm import LMRL, LMSFT, LMText
from common.config.locations import Location
from common.config.model import Model
from common.config.mrl import MRL
from common.config.names import CAUSAL_BACKENDS
from common.config.reward_stage import RewardModelStage
from common.config.rewards import RewardMix, Rewards
from common.config.rollout import Rollout
from common.config.section import Section
from common.config.stages import (
    SFT,
    JointLM,
    MemoryAware,
    MemoryPretrain,
    Reading,
)
from common.storage.formats import CONFIG

Stage = Annotated[
    JointLM
    | SFT
    | MemoryPretrain
    | Reading
    | MemoryAware
    | RewardModelStage
    | MRL
    | LMText
    | LMSFT
    | LMRL,
    Field(discriminator="stage"),
]


_JUDGES = (FunctionReward, ModelReward)
MICRO_BATCH_TOKENS = 4096
LearnerType = Literal["float32", "bfloat16", "float16"]


class Learner(Section):
    ranks: int = Field(1, ge=1)
    """Learner ranks, which are Ray Train workers. Gradients do not depend on their number."""
    threads: int = Field(1, ge=1)
    """Torch threads of each rank on CPU."""
    gpus_per_rank: float = Field(0, ge=0)
    """GPUs of each rank; 0: CPU."""
    dtype: LearnerType = "float32"
    """Type that matrix products of the learner are computed in. Weights, optimiser, log-probs and
    losses are float32 in any case. bfloat16: on CPUs and GPUs. float16: on GPUs, with a loss scale;
    a step whose gradient overflows is passed over."""
    micro_batch_tokens: int = Field(MICRO_BATCH_TOKENS, ge=1)
    """Tokens, padding included, of one forward and backward pass of a causal language model or of a
    reward model. A batch of more is computed in several passes, each of which needs its memory
    alone; their gradients add up to that of the batch. A longer sequence is a pass by itself."""
    node_labels: dict[str, str] = Field({})
    """Labels of the Ray nodes on which ranks start, such as {group: learner}; empty: any node.
    A local cluster has none."""
    max_failures: int = Field(3, ge=0)
    """Restarts of a learner group from the last checkpoint before the run fails. Supervised stages
    in a row share a group."""
    checkpoint_every: int = Field(200, ge=1)
    """Steps between checkpoints. One is always written at the end of a stage."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of newest checkpoints that are kept. The newest alone has the state of optimisers."""
    log_every: int = Field(10, ge=1)
    """Steps between rows of metrics in supervised stages. MRL writes a row per iteration."""
    batch_deadline: float = Field(600, gt=0)
    """Seconds that a rank waits at most for its next batch of episodes."""
    start_deadline: float = Field(120, gt=0)
    """Seconds that the learner group has to start."""

    @model_validator(mode="after")
    def _computes_on_its_device(self) -> Learner:
        if self.dtype == "float16" and not self.gpus_per_rank:
            raise ValueError(
                "dtype float16 is for GPUs, and gpus_per_rank is 0; take bfloat16 or float32"
            )
        return self


class Judge(Section):
    """A reward that training never uses. `engram eval` asks it which answer to a prompt is better,
    the policy's or that of its reference."""

    functions: tuple[FunctionReward, ...] = ()
    """Functions of yours, as in `rewards`."""
    models: tuple[ModelReward, ...] = ()
    """Reward models, as in `rewards`. With several judges the weighted mean counts."""

    @model_validator(mode="after")
    def _judges(self) -> Judge:
        if not self.functions and not self.models:
            raise ValueError("names no judge: give functions or models, or leave it out")
        return self

    @property
    def rewards(self) -> Rewards:
        """The judge as rewards of every kind of conversation."""
        nothing = RewardMix().changed(lambda _name, _part: None).model_dump()
        mix = RewardMix.model_validate(nothing | dict(self))
        return Rewards(single=mix, cumulative=mix, long_term=mix)


class Evaluation(Section):
    episodes: int = Field(200, ge=1)
    """Number of held-out conversations."""
    judge: Judge | None = None
    """Judge of answers to prompts, against those of the reference policy; None: there is none."""


class WandB(Section):
    project: str = "engram"
    """Project that the run is shown in."""
    entity: str | None = None
    """User or team that it belongs to; None: the default of whoever is logged in."""
    mode: Literal["online", "offline"] = "online"
    """offline: files under RUN/wandb, for `wandb sync`."""


class MLflow(Section):
    uri: str
    """Tracking server, as http://HOST:5000, or a place that MLflow opens by itself, as
    sqlite:///FILE."""
    experiment: str = "engram"
    """Experiment that the run is shown in."""


class Metrics(Section):
    port: int = Field(0, ge=0, le=65535)
    """Port of the run's Prometheus endpoint; 0: a free port, written to RUN/metrics_endpoint."""
    host: str = "127.0.0.1"
    """Address that it listens on; 0.0.0.0 lets Prometheus on another machine scrape it."""
    wandb: WandB | None = None
    """Also send metrics to Weights & Biases, with the configuration; needs the extra `wandb`, and
    WANDB_API_KEY on the driver's machine. None: not."""
    mlflow: MLflow | None = None
    """Also send metrics to MLflow, with the configuration; needs the extra `mlflow`. None: not."""


class Run(Section):
    """A whole run: what data, which model, which stages in order."""

    format: Literal[1] = CONFIG
    """Format of the configuration, which a run's own config.yaml states. Leave it out of yours."""
    name: str
    """Name of the run directory. A run that is started again under its name resumes."""
    runs: Location = Field("runs", validate_default=True)
    """Where run directories lie: a local folder or a URI that fsspec opens."""
    seed: int = Field(0, ge=0)
    """Seed of everything random in the run."""
    data: Data
    """Data to train and evaluate on."""
    tokenizer: Tokenizer = Tokenizer()
    """Tokenizer: trained on the data, or given."""
    model: Model = Model()
    """Shape of the model, or a checkpoint to start from."""
    stages: tuple[Stage, ...]
    """Stages in order. Each starts from the weights of the one before."""
    learner: Learner = Learner()
    """Learner ranks."""
    rollout: Rollout = Rollout()
    """Workers that play episodes in MRL."""
    environment: EnvironmentSettings = CONVERSATION
    """Environment that episodes of MRL are played in."""
    rewards: Rewards = Rewards()
    """Rewards of answers in MRL, and the workers that score."""
    evaluation: Evaluation = Evaluation()
    """Evaluation on held-out conversations before and after MRL."""
    metrics: Metrics = Metrics()
    """Prometheus endpoint, and services that get the metrics too."""

    @model_validator(mode="before")
    @classmethod
    def _counted_by_the_model(cls, settings: Any) -> Any:
        """Prompts are counted by the tokenizer of the run's model where no other is named."""
        data, model = (
            (settings.get(key) for key in ("data", "model"))
            if isinstance(settings, dict)
            else (None, None)
        )
        if not isinstance(data, dict) or not isinstance(model, dict):
            return settings
        causal = model.get("causal")
        path = causal.get("path") if isinstance(causal, dict) else causal
        if path is None or data.get("max_prompt_tokens") is None or data.get("tokenizer"):
            return settings
        return settings | {"data": data | {"tokenizer": path}}

    @model_validator(mode="after")
    def _computed_by_one_that_can(self) -> Run:
        backend = self.rollout.backend
        causal = backend in CAUSAL_BACKENDS
        if causal != (self.model.kind == "causal") and backend != "auto":
            raise ValueError(
                f"rollout.backend {backend} does not compute a {self.model.kind} policy; leave it "
                "at auto"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Run:
        for stage in self.stages[:-1]:
            if not stage.leaves_policy:
                raise ValueError(
                    f"{stage.stage} comes last: what follows would train a reward model on, not a "
                    "policy"
                )
        for stage in self.stages:
            if stage.needs_data and self.data.kind not in stage.needs_data:
                raise ValueError(
                    f"the stage {stage.stage} learns from data of kind "
                    f"{' or '.join(stage.needs_data)}, not {self.data.kind}"
                )
            if self.model.kind not in stage.policies:
                raise ValueError(
                    f"the stage {stage.stage} trains a {' or '.join(sorted(stage.policies))} "
                    f"policy, and model makes a {self.model.kind} one"
                )
            if stage.own_model is not None and len(self.stages) > 1:
                raise ValueError(
                    f"the stages before {stage.stage} train the run's own model, and its backbone "
                    f"is {stage.own_model}; leave one out"
                )
        return self

    @model_validator(mode="after")
    def _judged_by_another(self) -> Run:
        judge = self.evaluation.judge
        if judge is not None:
            paths = [part.path for part in judge.functions] + [part.path for part in judge.models]
            for part in self.rewards.components():
                if isinstance(part, _JUDGES) and part.path in paths:
                    raise ValueError(
                        f"evaluation.judge names {part.path}, which rewards pay by: what a policy "
                        "was trained on says nothing new about it; name another"
                    )
        return self

    @model_validator(mode="after")
    def _can_think(self) -> Run:
        causal = self.model.causal
        if self.rollout.sampling.think == "always" and causal is not None and causal.think is None:
            raise ValueError(
                "rollout.sampling.think: always needs model.causal.think, the texts around it"
            )
        return self

    @model_validator(mode="after")
    def _gives_values_of_tokens(self) -> Run:
        for index, stage in enumerate(self.stages):
            if stage.credits_tokens and self.model.kind != "causal":
                raise ValueError(
                    f"{self.stage_key(index)} gives credit to single tokens, of which a "
                    f"{self.model.kind} policy has no values; set its credit to answer"
                )
        return self

    @property
    def needs_rollout(self) -> bool:
        """Whether a stage learns from episodes, so that workers must play them."""
        return any(stage.needs_rollout for stage in self.stages)

    def stage_key(self, index: int) -> str:
        """The key of a stage as a user writes it: by name, or by number where two have one name."""
        name = self.stages[index].stage
        same = sum(stage.stage == name for stage in self.stages)
        return f"stages.{name if same == 1 else index}"
