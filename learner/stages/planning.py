"""Work and needs of a stage, worked out from its settings: batches, and models beside the policy.

Counts of interactions and tokens are upper bounds, since only the data know how long conversations
are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from common.config.mrl import MRL
from common.config.reward_stage import RewardModelStage
from common.config.run import Run
from common.config.stages import JointLM, MemoryPretrain, StageSettings, SupervisedStage
from common.models.reactive.config import RxTConfig, named_config
from common.storage.checkpoint import open_checkpoint

FLOAT_BYTES = 4
OPTIMIZER_FLOATS = 2
"""AdamW keeps two moments per parameter."""


@dataclass(frozen=True)
class Batches:
    """The batch algebra of one stage, or of one curriculum step of MRL."""

    name: str
    batch: int
    """Sequences, conversations or episodes collected at a time, over all ranks."""
    per_rank: int
    minibatch_per_rank: int
    """Sequences, conversations or episodes that one rank holds in one optimiser step."""
    optimizer_steps: int
    turns: int
    """Interactions of one of them, at most."""
    interactions: int
    """At most, over the whole stage: generated in MRL, read elsewhere."""
    tokens: int
    """At most, over the whole stage: generated in MRL, read elsewhere."""


@dataclass(frozen=True)
class Stored:
    """Numbers in the checkpoints of a stage."""

    model: int
    beside: int = 0
    """Numbers of trained modules beside the model: heads, critic, adapters."""
    moments: int = 0
    """Numbers of the optimisers, at most, in the newest checkpoint alone."""
    once: int = 0
    """Numbers of weights that the stage leaves as they are, in one file of the run."""


@dataclass(frozen=True)
class StagePlan:
    """One stage on paper."""

    batches: list[Batches]
    parameters: dict[str, int] = field(default_factory=dict)
    """Parameter counts of models beside the policy, by name."""
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes of a rank beside the policy and its optimiser, by purpose."""
    model: dict[str, str] = field(default_factory=dict)
    """Shape of a model in place of the policy; what it takes of memory is not worked out."""
    stored: Stored | None = None
    """Contents of its checkpoints; None where that is not worked out."""


def model_shape(run: Run) -> RxTConfig:
    """The model's shape: a checkpoint's own, or the named size with the overrides. Raises
    InputError where there is no such checkpoint."""
    if run.model.checkpoint is not None:
        with open_checkpoint(run.model.checkpoint).folder() as folder:
            return RxTConfig.from_dict(json.loads((folder / "config.json").read_bytes()))
    overrides = run.model.dimensions
    return named_config(run.model.size, vocab_size=run.tokenizer.vocab_size, **overrides)


def sequences(stage: SupervisedStage, run: Run, config: RxTConfig) -> StagePlan:
    """Interactions or texts, one by one."""
    batches = [_supervised(stage, run, config.max_tokens, turns=1)]
    return StagePlan(batches, stored=_trained(config, without=("memory",)))


def joint_lm(stage: JointLM, run: Run, config: RxTConfig) -> StagePlan:
    """The same, with heads on the encoder that are no part of the model."""
    heads = _head_parameters(config, stage.neighbours)
    stored = _trained(config, without=("memory",))
    stored = replace(stored, beside=heads, moments=stored.moments + OPTIMIZER_FLOATS * heads)
    return replace(sequences(stage, run, config), stored=stored)


def conversations(stage: SupervisedStage, run: Run, config: RxTConfig) -> StagePlan:
    """Whole conversations: the opening and its follow-ups."""
    longest = stage.longest or longest_conversation(run) or 0
    batches = [_supervised(stage, run, config.max_tokens, 1 + longest)]
    return StagePlan(batches, stored=_trained(config))


def writes(stage: MemoryPretrain, run: Run, config: RxTConfig) -> StagePlan:
    """The first interactions of conversations, as many as are written."""
    turns = 1 + (longest_conversation(run) or 0)
    if stage.max_writes is not None:
        turns = min(turns, stage.max_writes)
    batches, parts = [_supervised(stage, run, config.max_tokens, turns)], config.parameters()
    others = tuple(part for part in parts if part not in ("memory", "total"))
    return StagePlan(batches, stored=_trained(config, others))


def reward_model(stage: RewardModelStage, run: Run, config: RxTConfig) -> StagePlan:
    """A reward model from the policy."""
    count = reward_parameters(config, stage.levels)
    return StagePlan(
        sequences(stage, run, config).batches,
        parameters={"of the reward model": count},
        stored=Stored(count, moments=OPTIMIZER_FLOATS * count),
    )


def backbone(stage: RewardModelStage, run: Run) -> StagePlan:
    """A reward model of transformers, whose shape is its own. InputError where it is not there, or
    its weights do not fit."""
    # Here and not at the top: it brings torch, which a plan otherwise does without.
    from reward_service.reward_models.model import fitting_config

    where = stage.own_model
    assert where is not None, "only settings that name a backbone are planned here"
    config = fitting_config(where, where, stage.levels)
    keys = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    return StagePlan(
        [_supervised(stage, run, stage.max_tokens, turns=1)],
        model={key: str(getattr(config, key)) for key in keys},
    )


def mrl(stage: MRL, run: Run, config: RxTConfig) -> StagePlan:
    """Episodes of each curriculum step; a reference policy and, where the algorithm has one, a
    critic beside the policy."""
    update, batches = stage.algorithm_settings, curriculum_batches(stage, run)
    memory = {"reference policy": config.parameters()["total"] * FLOAT_BYTES}
    reads = update.critic_input
    critic = 0 if reads is None else critic_parameters(config, reads.memory)
    if reads is not None:
        memory["critic, gradients and optimiser"] = critic * (2 + OPTIMIZER_FLOATS) * FLOAT_BYTES
    if reads is not None and reads.memory:
        turns = max(batch.per_rank * (batch.turns + 1) for batch in batches)
        one = config.layers * config.slots * config.width * FLOAT_BYTES
        memory["memories that the critic reads"] = turns * one
    total = config.parameters()["total"]
    stored = Stored(total, critic, OPTIMIZER_FLOATS * (total + critic), once=total)
    return StagePlan(batches, memory=memory, stored=stored)


def lm_rl(stage: MRL, run: Run, config: Any) -> StagePlan:
    """As `mrl`; what a causal language model takes of memory is the plan's of the whole run. A text
    memory is generated for each answer, too."""
    text = None if run.model.causal is None else run.model.causal.text_memory
    budget = 0 if text is None else text.tokens
    batches = curriculum_batches(stage, run)
    return StagePlan(
        [replace(each, tokens=each.tokens + each.interactions * budget) for each in batches]
    )


def curriculum_batches(stage: MRL, run: Run) -> list[Batches]:
    """Batches of each curriculum step."""
    ranks, update = run.learner.ranks, stage.algorithm_settings
    shares = ranks * update.minibatches
    batches = []
    for step in stage.curriculum:
        interactions = step.iterations * stage.episodes * step.max_steps
        batches.append(
            Batches(
                name=f"{stage.stage}: {step.name}",
                batch=stage.episodes,
                per_rank=math.ceil(stage.episodes / ranks),
                minibatch_per_rank=math.ceil(stage.episodes / shares),
                optimizer_steps=step.iterations * update.epochs * update.minibatches,
                turns=step.max_steps,
                interactions=interactions,
                tokens=interactions * run.rollout.sampling.max_new_tokens,
            )
        )
    return batches


def stages_by_group(stages: Sequence[StageSettings]) -> list[list[int]]:
    """Indices of the stages by the group of ranks that runs them: supervised stages in a row
    together, each stage with rollouts by itself."""

    def group_of(index: int) -> int:
        return index if stages[index].needs_rollout else -1

    return [list(indices) for _, indices in groupby(range(len(stages)), group_of)]


def longest_conversation(run: Run) -> int | None:
    """Follow-ups of the longest conversation that the config lets in; None where only the data
    know."""
    if run.data.longest is not None:
        return run.data.longest
    return max((stage.longest for stage in run.stages if stage.longest is not None), default=None)


def critic_parameters(config: RxTConfig, reads_memory: bool = False) -> int:
    """Number of parameters of `common.models.reactive.critic`: embedding and encoder as the
    policy's, an attention to memory per layer where it reads that, and a gated layer, a norm and
    one value on top."""
    parts, width = config.parameters(), config.width
    looks = config.layers * _look_parameters(config) if reads_memory else 0
    head = 2 * width * (width + 1) + 2 * width + width + 1
    return parts["embedding"] + parts["encoder"] + looks + head


def reward_parameters(config: RxTConfig, levels: int) -> int:
    """Number of parameters of `common.models.reactive.reward`: two encoders with an embedding each,
    memory attention, an attention to memory per layer, a norm and the head."""
    parts, width = config.parameters(), config.width
    return (
        2 * (parts["embedding"] + parts["encoder"])
        + parts["memory"]
        + config.layers * _look_parameters(config)
        + width
        + levels * (width + 1)
    )


def _trained(config: RxTConfig, without: Sequence[str] = ()) -> Stored:
    """Checkpoints of a stage that trains the policy but for some parts."""
    parts = config.parameters()
    trained = parts["total"] - sum(parts[part] for part in without if part in parts)
    return Stored(parts["total"], moments=OPTIMIZER_FLOATS * trained)


def _head_parameters(config: RxTConfig, neighbours: int) -> int:
    """Number of parameters of the `MaskedLMHead` and, where there is one, of the `NeighbourHead`
    (`common.models.reactive.encoder`)."""
    width = config.width
    head = width * (width + 1) + 2 * width + config.vocab_size * (width + 1)
    return head + (2 * neighbours * width * (width + 1) + head if neighbours else 0)


def _look_parameters(config: RxTConfig) -> int:
    """Number of parameters of a `MemoryLook`."""
    width, query, kv = (
        config.width,
        config.cross_query_heads or config.query_heads,
        config.cross_kv_heads or config.kv_heads,
    )
    projections = width * config.head_dim * (query + 2 * kv) + config.head_dim * query * width
    return projections + width + 2 * width


def _supervised(stage: SupervisedStage, run: Run, max_tokens: int, turns: int) -> Batches:
    interactions = stage.total_steps * stage.batch_size * turns
    per_rank = math.ceil(stage.batch_size / run.learner.ranks)
    return Batches(
        stage.stage,
        stage.batch_size,
        per_rank,
        per_rank,
        stage.total_steps,
        turns,
        interactions,
        interactions * max_tokens,
    )
