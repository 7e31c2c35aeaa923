"""Settings of the supervised stages of training and of their optimisers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from common.config.section import Section
from common.config.turn_weights import TurnWeights
from common.config.unfreeze import Phase, require_order
from common.failures import nearest

if TYPE_CHECKING:
    from common.config.mrl import CurriculumStep


class Optimizer(Section):
    """AdamW with linear warm-up and cosine decay to `final_fraction` of the peak."""

    learning_rate: float = Field(1e-3, gt=0)
    """Peak rate."""
    memory_learning_rate: float | None = Field(None, gt=0)
    """Peak rate of the memory attention; None: as the rest."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay for matrices. Norms, biases and gates are exempt."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the mean of gradients."""
    beta2: float = Field(0.98, ge=0, lt=1)
    """Decay of the mean of their squares."""
    warmup_fraction: float = Field(0.05, ge=0, le=1)
    """Share of a stage's steps in which the rate rises from 0 to its peak."""
    final_fraction: float = Field(0.1, ge=0, le=1)
    """Share of the peak at the stage's last step."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients of a larger norm, over all parameters of the optimiser, are scaled down to it."""


class StageSettings(Section):
    """Settings of one stage, and what follows from them alone. What a stage runs is a row of the
    table in `learner/stages/stage.py`."""

    batch_key: ClassVar[str]
    """Name of the setting that says how many examples or episodes a step takes over all ranks."""
    needs_rollout: ClassVar[bool] = False
    """Whether it learns from episodes that rollout workers play."""
    needs_data: ClassVar[tuple[str, ...]] = ()
    """The only kinds of data that it can learn from; empty: any."""
    leaves_policy: ClassVar[bool] = True
    """Whether another stage can go on with the weights that it leaves."""
    fixed: ClassVar[frozenset[str]] = frozenset({"stage"})
    """Settings that a run must keep once it has begun; those inside a section as
    "section.setting"."""
    policies: ClassVar[frozenset[str]] = frozenset({"reactive"})
    """Kinds of policies that it trains, or starts from: reactive, causal."""

    stage: str
    """Which stage this is."""

    @property
    def total_steps(self) -> int:
        """Optimiser steps of a supervised stage, iterations of a stage with rollouts."""
        raise NotImplementedError

    @property
    def is_counted(self) -> bool:
        """Whether `total_steps` is known before the data are read."""
        return True

    @property
    def batch(self) -> int:
        """Examples or episodes of a step, over all ranks."""
        return int(getattr(self, self.batch_key))

    @property
    def longest(self) -> int | None:
        """Follow-ups of the longest conversation that it takes; None: as long as the data are."""
        return None

    @property
    def curriculum_steps(self) -> tuple[CurriculumStep, ...]:
        """Steps of its curriculum; empty: it has none, and takes all of its data."""
        return ()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Phases of training, by parts of the model; empty: it trains what it trains throughout."""
        return ()

    @property
    def learns_by(self) -> str | None:
        """The algorithm of a stage with rollouts and its samples of each task, as a plan says it;
        None for a stage without."""
        return None

    @property
    def own_model(self) -> str | None:
        """The model that it trains in place of the run's own; None: the run's."""
        return None

    @property
    def may_end_early(self) -> bool:
        """Whether `total_steps` is a bound: what is measured may end the stage before."""
        return False

    @property
    def credits_tokens(self) -> bool:
        """Whether single tokens get credit, which takes values of tokens."""
        return False


class SupervisedStage(StageSettings):
    batch_key = "batch_size"
    measures: ClassVar[tuple[str, ...]] = ()
    """Metrics of the stage that `until` can name: accuracies, cosines and losses."""

    steps: int | None = Field(200, ge=1)
    """Optimiser steps; with `until`, at most. None: `epochs` says how many."""
    epochs: float | None = Field(None, gt=0)
    """Passes over all examples of the stage, in place of `steps`. They become steps, rounded up,
    when the data are read: `engram plan` shows these, and the run's config.yaml has them."""
    until: dict[str, float] = Field(default_factory=dict)
    """Metrics of the stage and values to reach, such as {train/accuracy_lm: 0.98}: accuracies and
    cosines at least so high, losses at most, as means over 20 steps. The learning rate stays at its
    peak until all are reached; then it decays over `decay_steps`, and the stage ends. Where `steps`
    are over before that, terminal and summary say so."""
    decay_steps: int = Field(0, ge=0)
    """Steps of a stage with `until` after its values are reached."""
    batch_size: int = Field(32, ge=1)
    """Sequences, or conversations, per step over all ranks."""
    optimizer: Optimizer = Optimizer()
    """Optimiser for everything that the stage trains."""

    @property
    def total_steps(self) -> int:
        assert self.steps is not None, "epochs become steps when the data are read"
        return self.steps

    @property
    def is_counted(self) -> bool:
        return self.steps is not None

    @property
    def may_end_early(self) -> bool:
        return bool(self.until)

    @property
    def begins_to_measure(self) -> int:
        """Steps before `until` looks at what is measured."""
        return 0

    def meets(self, name: str, value: float) -> bool:
        """Whether a value of a metric that `until` names is good enough."""
        wanted = self.until[name]
        return value <= wanted if _falls(name) else value >= wanted

    @model_validator(mode="before")
    @classmethod
    def _steps_or_epochs(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        steps = settings.get("steps", cls.model_fields["steps"].default)
        if settings.get("epochs") is None:
            if steps is None:
                raise ValueError("has neither steps nor epochs; give one of them")
            return settings
        if settings.get("steps") is not None:
            raise ValueError(
                f"steps ({steps}) and epochs ({settings['epochs']}) both say how long the stage "
                "is; leave one out, or set it to null"
            )
        return settings | {"steps": None}

    @field_validator("until")
    @classmethod
    def _can_be_reached(cls, until: dict[str, float]) -> dict[str, float]:
        for name, value in until.items():
            if name not in cls.measures:
                raise ValueError(f"{name!r} is not measured here; {nearest(name, cls.measures)}")
            if value <= 0 or (value > 1 and not _falls(name)):
                raise ValueError(
                    f"{name} is never {value:g}; give a value above 0"
                    + ("" if _falls(name) else " and up to 1")
                )
        return until


def _falls(metric: str) -> bool:
    return metric.startswith("train/loss")


class JointLM(SupervisedStage):
    """Stage 1: masked LM on the encoder, next-token LM on the decoder that reads the encoder's
    states."""

    measures = (
        "train/accuracy_lm",
        "train/accuracy_masked_lm",
        "train/accuracy_neighbours",
        "train/loss_lm",
        "train/loss_masked_lm",
        "train/loss_neighbours",
    )

    stage: Literal["joint_lm"]
    """Which stage this is."""
    router_loss: float = Field(0.01, ge=0)
    """Coefficient of the load-balancing loss of mixture-of-experts layers."""
    mask_probability: float = Field(0.15, gt=0, lt=1)
    """Probability that the encoder has to guess a token; special tokens are never masked."""
    mask_random: float = Field(0.0, ge=0, le=1)
    """Share of the tokens to guess that the encoder sees as another token drawn at random, in place
    of [MASK]. 0.1 here and in `mask_keep` are the 80/10/10 of BERT (Devlin et al. 2019, arXiv
    1810.04805)."""
    mask_keep: float = Field(0.0, ge=0, le=1)
    """Share of the tokens to guess that the encoder sees as they are."""
    hide_probability: float = Field(0.0, ge=0, lt=1)
    """Probability that a position of the encoded data is zeroed before the decoder reads it."""
    noise: float = Field(0.0, ge=0)
    """Std of normal noise on the encoded data."""
    blind_fraction: float = Field(0.0, ge=0, le=1)
    """Share of sequences whose decoder reads initial memory instead: trains self-attention where
    the encoder would give the text away."""
    neighbours: int = Field(0, ge=0)
    """n: the last layer of the encoder also has to tell the tokens up to n positions before and
    after each token, through a head that is thrown away. It teaches the encoder to bind what stands
    together, such as a name and its value, which masked LM does not. 0: off."""
    decoder_only_steps: int = Field(0, ge=0)
    """Steps at the beginning in which decoder and embedding learn alone: the decoder reads initial
    memory, its cross-attention stands still, and the encoder is not run. Self-attention has to
    learn what the encoder would give away. `until` does not count these steps."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        if not self.decoder_only_steps:
            return ()
        return (
            Phase(after=0, train=("decoder", "embedding")),
            Phase(after=self.decoder_only_steps, train=("encoder", "memory_cross_attention")),
        )

    @property
    def begins_to_measure(self) -> int:
        return self.decoder_only_steps

    @model_validator(mode="after")
    def _masks_and_begins(self) -> Self:
        if self.mask_random + self.mask_keep > 1:
            raise ValueError(
                f"mask_random and mask_keep are shares of the same tokens, and "
                f"{self.mask_random:g} + {self.mask_keep:g} is more than all of them"
            )
        if self.steps is not None and self.decoder_only_steps >= self.steps:
            raise ValueError(
                f"decoder_only_steps is {self.decoder_only_steps}, and the stage is over after "
                f"{self.steps}: the encoder would never learn"
            )
        return self

    @model_validator(mode="after")
    def _measures_neighbours(self) -> Self:
        for name in self.until:
            if name.endswith("_neighbours") and not self.neighbours:
                raise ValueError(f"until waits for {name}, and neighbours is 0")
        return self


class SFT(JointLM):
    """Stage 2: as joint LM, on interactions, with the decoder's loss on the answer only, [EOS]
    included."""

    stage: Literal["sft"]  # type: ignore[assignment]
    """Which stage this is."""
    start_weight: float = Field(1.0, ge=0)
    """Weight in the decoder's loss of interactions that begin a conversation, single ones
    included, relative to `middle_weight`."""
    middle_weight: float = Field(1.0, ge=0)
    """Weight in the decoder's loss of interactions from the middle of a conversation: follow-ups of
    the training conversations that open none."""

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if not self.start_weight and not self.middle_weight:
            raise ValueError("start_weight and middle_weight are both 0: nothing would be learnt")
        return self


class MemoryPretrain(SupervisedStage):
    """Stage 3: the memory attention learns to hold the old and take in the new, by cosine to a
    mixture of both."""

    measures = ("train/memory_cosine",)

    stage: Literal["memory_pretrain"]
    """Which stage this is."""
    first_weight: float = Field(0.9, gt=0, le=1)
    """Weight of the encoded interaction in the label of the first write."""
    next_weight: float = Field(0.5, gt=0, le=1)
    """The same for the second write; it falls by `weight_decay_per_step` per write after that."""
    weight_decay_per_step: float = Field(0.05, ge=0)
    """By how much the weight falls with each further write."""
    minimum_weight: float = Field(0.05, ge=0, le=1)
    """The weight falls no lower."""
    input_noise: float = Field(0.0, ge=0)
    """Std of normal noise on the encoded interaction that is written."""
    label_noise: float = Field(0.0, ge=0)
    """Std of normal noise on the label."""
    label_weight_shift: float = Field(0.0, ge=0, le=1)
    """Largest shift of the weight of the new in a label, which old memory's weight goes against: it
    is drawn evenly from -shift to shift for each write, and the weight stays within 0 and 1. The
    articles have 0.15."""
    max_writes: int | None = Field(None, ge=1)
    """Writes of a conversation that take part, from its beginning: after ten or so, the label's
    weights do not change any more. None: all."""


class Reading(SupervisedStage):
    """Before stage 4: answers predicted from the encoding of the turn that says what they need, in
    the place of memory. Teaches the encoder what memory will have to hold; memory attention has no
    part in it."""

    measures = ("train/accuracy_lm", "train/loss_lm")

    stage: Literal["reading"]
    """Which stage this is."""
    router_loss: float = Field(0.01, ge=0)
    """Coefficient of the load-balancing loss of mixture-of-experts layers."""


class MemoryAware(SupervisedStage):
    """Stage 4: answers predicted from memory over whole conversations, teacher forced."""

    measures = ("train/accuracy_lm", "train/loss_lm")
    replaced: ClassVar[dict[str, str]] = dict.fromkeys(
        ("train_encoder", "train_memory"), "unfreeze"
    )

    stage: Literal["memory_aware"]
    """Which stage this is."""
    router_loss: float = Field(0.01, ge=0)
    """Coefficient of the load-balancing loss of mixture-of-experts layers."""
    bptt_turns: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """How many writes before it the gradient of an answer flows back through: 1 as in the articles,
    or all of the episode. k writes for every answer cost up to k times the writing."""
    max_follow_ups: int | None = Field(None, ge=1)
    """Longer conversations are left out. None: all take part."""
    first_follow_ups: int | None = Field(None, ge=1)
    """Conversations are cut to so many follow-ups at first: remembering over one turn is learnt
    before ten. None: whole from the start."""
    hold_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the steps before they begin to grow."""
    grow_fraction: float = Field(0.5, gt=0, le=1)
    """Share of the steps by which they have grown, evenly, to their whole length."""
    unfreeze: tuple[Phase, ...] = ()
    """Phases in order, each of which adds parts of the model to those that learn; a part that none
    names stays as it is. Empty: all learn from the start."""
    weights: TurnWeights = TurnWeights()
    """Weights of answers in the loss."""
    evaluate_every: int = Field(0, ge=0)
    """Steps between measurements of recall on held-out conversations, which rank 0 plays while
    the others wait. 0: none."""
    evaluate_conversations: int = Field(100, ge=1)
    """Held-out conversations of such a measurement."""
    gate_penalty: float = Field(0.0, ge=0)
    """Coefficient of the mean share of memory that a write replaces: asks gates to keep what is not
    overwritten, which carries facts further than the trained length."""
    gate_penalty_from: float = Field(0.0, ge=0, lt=1)
    """Share of the steps before the penalty begins."""

    @property
    def longest(self) -> int | None:
        return self.max_follow_ups

    @field_validator("unfreeze")
    @classmethod
    def _in_order(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        require_order(phases)
        if any(phase.reward is not None for phase in phases):
            raise ValueError("only MRL has a reward; give after")
        return phases

    @property
    def phases(self) -> tuple[Phase, ...]:
        return self.unfreeze
