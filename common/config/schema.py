"""Every setting of a run, typed, with its unit and source. `loader.py` reads it from YAML; nothing
else reads settings.

Sections are frozen. An unknown key is an error at the door, and no code below asks for a setting
with a default of its own.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.config.locations import DataSource, Location, ModelSource
from common.config.rewards import Rewards
from common.config.section import Section

# --- data -----------------------------------------------------------------------------------------


class SynthData(Section):
    """Generated conversations with facts: statements, distractors, changes of mind, and questions
    about them."""

    kind: Literal["synth"] = "synth"
    """Which kind of data this is."""
    train: int = Field(4000, ge=1)
    """Conversations in the training split."""
    eval: int = Field(200, ge=1)
    """Conversations held out for evaluation; as many again are kept for the final figure."""
    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field((5,), min_length=1)
    """Numbers of follow-ups; conversations are spread evenly over them."""
    strategies: tuple[Literal["single", "cumulative", "long_term"], ...] = Field(
        ("cumulative",), min_length=1
    )
    """Spread evenly over conversations."""
    subjects: int = Field(6, ge=1, le=24)
    """How many kinds of things (dog, city, job, …) facts can be about."""
    values: int = Field(12, ge=2, le=48)
    """How many values each kind of thing can have."""
    changed_questions: float = Field(0.5, ge=0, le=1)
    """Share of questions that ask for a fact that changed, as far as the length of a conversation
    leaves room for a change."""
    change_probability: float = Field(0.2, ge=0, le=1)
    """Probability that a turn in the middle changes a fact told before."""
    distractors: float = Field(0.3, ge=0, le=1)
    """Share of middle turns that are small talk."""
    patterns: int = Field(0, ge=0)
    """Conversations of each pattern of change, held out in splits of their own (`engram data
    synth`)."""


class BabiData(Section):
    """The bAbI tasks (Weston et al. 2015) as cumulative conversations: statements and questions in
    separate turns."""

    kind: Literal["babi"] = "babi"
    """Which kind of data this is."""
    folder: Location
    """Folder with qa*_train.txt and qa*_test.txt."""
    tasks: tuple[int, ...] = (1,)
    """Task numbers 1–20 to train on; each needs its train file."""
    max_questions: int = Field(5, ge=1, le=5)
    """Questions kept per story."""
    eval_fraction: float = Field(0.02, gt=0, lt=0.5)
    """Share of training stories held out to tune on; the test files are for the final figure
    only."""


class SgdData(Section):
    """Schema-Guided Dialogue (Rastogi et al. 2020), compact files: recall points are the turns that
    confirm slots told earlier."""

    kind: Literal["sgd"] = "sgd"
    """Which kind of data this is."""
    folder: Location
    """Folder with sgd_compact_train.jsonl.gz and sgd_compact_dev.jsonl.gz."""
    max_follow_ups: int = Field(8, ge=1)
    """Longer conversations are left out, and counted."""
    eval_fraction: float = Field(0.02, gt=0, lt=0.5)
    """Share of training dialogues held out to tune on; the dev file is for the final figure
    only."""


class RowsData(Section):
    """Your own conversations: MRL rows as JSONL or Parquet files, or names of `datasets`."""

    kind: Literal["rows"] = "rows"
    """Which kind of data this is."""
    train: tuple[DataSource, ...]
    """Conversations to train on."""
    eval: tuple[DataSource, ...]
    """Conversations to evaluate on during and after the run; keep them apart from those to train
    on."""
    texts: tuple[DataSource, ...] = ()
    """Files of {"text"} for joint LM pre-training; empty: the training conversations'
    interactions."""
    pairs: tuple[DataSource, ...] = ()
    """Files of {"query", "answer"} or "[Q] … [A] …" text for SFT; empty: the training
    conversations' interactions."""


class PreferencesData(Section):
    """Answers that people ranked, for a reward model: JSONL or Parquet files of {"prompt",
    "chosen", "rejected", "margin"?}, or of {"prompt", "answers"} from best to worst, either with
    "history"?; or names of `datasets`. Stages before the reward model train on all answers
    alike."""

    kind: Literal["preferences"] = "preferences"
    """Which kind of data this is."""
    train: tuple[DataSource, ...] = Field(min_length=1)
    """To train on."""
    eval: tuple[DataSource, ...] = ()
    """Held out; empty: a share of `train`."""
    eval_fraction: float = Field(0.2, gt=0, lt=0.5)
    """Share of `train` that is held out where `eval` is empty, by hash of the group, so that no
    group is divided."""
    conversations: tuple[DataSource, ...] = ()
    """Files of conversations (MRL rows) that the stages before the reward model train on as well,
    without those that answer a prompt of the preferences."""


Data = Annotated[
    SynthData | BabiData | SgdData | RowsData | PreferencesData, Field(discriminator="kind")
]


class Tokenizer(Section):
    vocab_size: int = Field(1024, ge=264)
    """Upper bound, special tokens and the 256 bytes included; small data fills less."""
    path: Location | None = None
    """A tokenizer folder to use instead of training one on the data."""


# --- model ----------------------------------------------------------------------------------------


class Model(Section):
    """A named size, with single dimensions overridden; null leaves a dimension as the size has
    it."""

    size: Literal["tiny", "nano", "micro", "mini"] = "tiny"
    """Named size that gives every dimension not set here."""
    checkpoint: Location | None = None
    """Start from this checkpoint's weights; its shape then wins and the overrides must agree with
    it."""
    width: int | None = None
    """Width of embeddings, hidden states and memory slots."""
    layers: int | None = None
    """Layers of the decoder, and as many of encoder, memory attention and memory."""
    heads: int | None = None
    """Heads that the width is divided into: a head has width / heads numbers."""
    query_heads: int | None = None
    """Query heads of self-, memory cross- and memory attention; fewer than `heads` is sparse query
    attention."""
    kv_heads: int | None = None
    """Key and value heads of the same; they divide the query heads."""
    slots: int | None = None
    """Rows of short-term memory per layer."""
    max_tokens: int | None = None
    """Longest interaction, in tokens."""
    decoder_ff: int | None = None
    """Inner width of a decoder feed-forward, or of each of its experts."""
    encoder_ff: int | None = None
    """Inner width of an encoder feed-forward."""
    experts: int | None = None
    """Experts of each decoder feed-forward; 0: dense."""
    experts_per_token: int | None = None
    """Experts that each token goes to. Several are weighted by their share of their probabilities,
    one by its probability as it is."""
    memory_attention: Literal["simple", "self", "interlayer", "gated_self_interlayer"] | None = None
    """What slots see of each other before they read the interaction: nothing, their layer, the mean
    over layers, or a gated mixture."""
    residual_gate: Literal["none", "static", "elementwise", "linear"] | None = None
    """How old and new memory mix: their sum, or by a gate that is a parameter, a parameter per
    status, or linear in all slots' statuses."""
    gate_activation: Literal["sigmoid", "tanh"] | None = None
    """sigmoid gives g·new + (1-g)·old, tanh gives (1+g)·new + (1-g)·old."""
    initial_memory: Literal["normal", "learned"] | None = None
    """Drawn from the episode's seed, or a trained parameter."""
    initial_memory_std: float | None = None
    """Standard deviation of initial memory, or of the parameter's first value."""


# --- learner --------------------------------------------------------------------------------------


class Optimizer(Section):
    """AdamW with linear warm-up and cosine decay to `final_fraction` of the peak."""

    learning_rate: float = Field(1e-3, gt=0)
    """Peak rate."""
    memory_learning_rate: float | None = Field(None, gt=0)
    """Peak rate of the memory attention; None: as the rest."""
    weight_decay: float = Field(0.01, ge=0)
    """Of matrices; norms, biases and gates are not decayed."""
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


# --- supervised stages ----------------------------------------------------------------------------


class SupervisedStage(Section):
    steps: int = Field(200, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(32, ge=1)
    """Sequences, or conversations, per step over all ranks."""
    optimizer: Optimizer = Optimizer()
    """Of everything that the stage trains."""


class JointLM(SupervisedStage):
    """Stage 1: masked LM on the encoder, next-token LM on the decoder that reads the encoder's
    states."""

    stage: Literal["joint_lm"]
    """Which stage this is."""
    router_loss: float = Field(0.01, ge=0)
    """Coefficient of the load-balancing loss of mixture-of-experts layers."""
    mask_probability: float = Field(0.15, gt=0, lt=1)
    """Probability that the encoder has to guess a token; special tokens are never masked."""
    hide_probability: float = Field(0.0, ge=0, lt=1)
    """Probability that a position of the encoded data is zeroed before the decoder reads it."""
    noise: float = Field(0.0, ge=0)
    """Std of normal noise on the encoded data."""
    blind_fraction: float = Field(0.0, ge=0, le=1)
    """Share of sequences whose decoder reads initial memory instead: trains self-attention where
    the encoder would give the text away."""


class SFT(JointLM):
    """Stage 2: as joint LM, on interactions, with the decoder's loss on the answer only, [EOS]
    included."""

    stage: Literal["sft"]  # type: ignore[assignment]
    """Which stage this is."""


class MemoryPretrain(SupervisedStage):
    """Stage 3: the memory attention learns to hold the old and take in the new, by cosine to a
    mixture of both."""

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
    """Std of normal noise on the encoded interaction that is written; the label has none."""


class MemoryAware(SupervisedStage):
    """Stage 4: answers predicted from memory over whole conversations, teacher forced."""

    stage: Literal["memory_aware"]
    """Which stage this is."""
    router_loss: float = Field(0.01, ge=0)
    """Coefficient of the load-balancing loss of mixture-of-experts layers."""
    bptt_turns: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """How many writes before it the gradient of an answer flows back through: 1 as in the articles,
    or all of the episode. k writes for every answer cost up to k times the writing."""
    first_follow_ups: int | None = Field(None, ge=1)
    """Conversations are cut to so many follow-ups at first: remembering over one turn is learnt
    before ten. None: whole from the start."""
    hold_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the steps before they begin to grow."""
    grow_fraction: float = Field(0.5, gt=0, le=1)
    """Share of the steps by which they have grown, evenly, to their whole length."""
    train_encoder: bool = True
    """Whether the encoder is trained."""
    train_memory: bool = True
    """Whether the memory attention is trained."""


class Lora(Section):
    """Low-rank adaptation (Hu 2021), by peft. Checkpoints hold the merged weights."""

    rank: int = Field(16, ge=1)
    """Rank of each update."""
    alpha: int = Field(32, gt=0)
    """Updates are scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the input of each update."""
    targets: tuple[str, ...] = ()
    """Last parts of the names of the linear layers to adapt, such as q_proj; empty: all but the
    head."""


class RewardModelStage(SupervisedStage):
    """A reward model from preferences: of the run's RxT, which then reads memory, or of any model
    of transformers. It is the last stage of its run, and the run's checkpoints are reward models
    from there on."""

    stage: Literal["reward_model"]
    """Which stage this is."""
    backbone: ModelSource | None = None
    """Folder or hub name of a model that transformers opens; None: the model that the stages before
    trained."""
    levels: int = Field(1, ge=1)
    """1: a scalar reward (Bradley–Terry); K: probabilities of scores 1…K, whose spread says how
    sure it is."""
    ranking: Literal["pairs", "best"] = "pairs"
    """What more than two answers of a prompt teach: every pair of them, or which one is best.
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


# --- rollout and MRL ------------------------------------------------------------------------------


class Sampling(Section):
    temperature: float = Field(1.0, ge=0)
    """0: greedy."""
    top_k: int = Field(0, ge=0)
    """0: off."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Only the most probable tokens that together have this probability; 1: off."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Only tokens with at least this share of the largest probability; 0: off."""
    max_new_tokens: int = Field(24, ge=1)
    """Longest answer, [EOS] included."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end an answer. Its text ends before the first of them; its tokens, which memory
    is written with, hold it."""


class Rollout(Section):
    workers: int = Field(2, ge=1)
    """Actors that generate."""
    slots: int = Field(32, ge=1)
    """Episodes in flight per worker."""
    threads: int = Field(1, ge=1)
    """Torch threads of each worker on CPU. One plays by kernels made for small models, several by
    PyTorch."""
    gpus_per_worker: float = Field(0, ge=0)
    """0: on CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What workers compute in. With bfloat16 the distribution sampled from is the learner's up to
    rounding only, and ppo/ratio_max_deviation_first says how far off it is."""
    sampling: Sampling = Sampling()
    """How answers are drawn. MRL needs a temperature above 0 and no filter."""
    deadline: float = Field(300, gt=0)
    """Seconds for one group of episodes."""
    retries: int = Field(3, ge=0)
    """Further tries on another worker after an infra failure."""
    restarts: int = Field(-1, ge=-1)
    """Restarts Ray gives each actor; -1: without bound."""


class CurriculumStep(Section):
    name: str
    """Unique in the curriculum; metrics and episodes are told apart by it."""
    iterations: int = Field(ge=1)
    """Batches of episodes collected and learnt from."""
    max_steps: int = Field(ge=1)
    """Rows with at most this many follow-ups take part."""
    strategy: Literal["single", "cumulative", "long_term"] | None = None
    """Only rows of this strategy; None: all."""
    reset_probability: float = Field(1.0, ge=0, le=1)
    """Probability, per episode, of starting from fresh memory instead of one held from an earlier
    episode."""
    teacher_forcing: bool = False
    """Whether memory is written with the data set's answers in place of the generated ones."""


class PPO(Section):
    """Token-level ratio with one advantage per interaction (Schulman et al. 2017)."""

    clip: float = Field(0.2, gt=0)
    """The ratio of new to old probability counts no further than 1 ± this."""
    value_clip: float = Field(0.2, gt=0)
    """The value counts no further than this from the old one, as a share of the width of the range
    that rewards lie in: `rewards.scale` where they are in [0, 1], twice that where symmetric. A
    clipped component is as wide as its clip, a normalised one counts as one standard deviation, one
    of yours without a clip as 1."""
    entropy: float = Field(0.0, ge=0)
    """Coefficient of the mean entropy per token, in nats."""
    discount: float = Field(0.9, ge=0, le=1)
    """Of rewards, per turn."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Of generalised advantage estimation, per turn."""
    epochs: int = Field(2, ge=1)
    """Passes over each batch."""
    minibatches: int = Field(2, ge=1)
    """Optimiser steps per pass, each on as large a share of the batch."""
    kl: float = Field(0.02, ge=0)
    """First coefficient of the KL to the reference policy (the weights that MRL started from)."""
    kl_target: float | None = Field(None, gt=0)
    """Nats per answer that the adaptive controller steers to; None: the coefficient stays."""
    kl_horizon: int = Field(10000, ge=1)
    """Episodes; the larger, the slower the adaptive controller."""
    kl_estimator: Literal["k2", "k3"] = "k2"
    """Of the KL in the loss. k2 has the gradient of KL(policy, reference), k3 that of KL(reference,
    policy); k1 would have none."""
    memory_change: float = Field(0.0, ge=0)
    """Coefficient of the mean squared change of memory per write, grown with sqrt(turn)."""
    bptt_turns: Annotated[int, Field(ge=1)] | Literal["all"] = "all"
    """How many writes before it the gradient of an answer flows back through, as in memory-aware
    training."""
    whiten: bool = True
    """Whether advantages are whitened over the whole batch."""
    doubt: bool = False
    """Divide each advantage by 1 + the standard deviation of its score, in levels, where a discrete
    reward model gave one: less is learnt from what it is unsure of."""
    critic_warmup: int = Field(0, ge=0)
    """Iterations in which only the critic learns. Its first values are 0, so without it the first
    advantages are whole returns, and a policy that starts good is first of all shaken."""
    critic_learning_rate: float = Field(1e-3, gt=0)
    """Constant rate of the critic's own optimiser."""


class MRL(Section):
    """Stage 5: Memory Reinforcement Learning over a curriculum, synchronous."""

    stage: Literal["mrl"]
    """Which stage this is."""
    episodes: int = Field(64, ge=1)
    """Episodes per iteration over all ranks."""
    curriculum: tuple[CurriculumStep, ...]
    """Steps in order, each with a name of its own."""
    ppo: PPO = PPO()
    """The update."""
    optimizer: Optimizer = Optimizer(learning_rate=3e-4, warmup_fraction=0.0, final_fraction=1.0)
    """Of the policy."""
    freeze_encoder: bool = False
    """Whether the encoder stays as it is."""
    router_loss: float = Field(0.01, ge=0)
    """Coefficient of the load-balancing loss of mixture-of-experts layers."""


Stage = Annotated[
    JointLM | SFT | MemoryPretrain | MemoryAware | RewardModelStage | MRL,
    Field(discriminator="stage"),
]


# --- the run --------------------------------------------------------------------------------------


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
