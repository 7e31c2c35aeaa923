"""The plan of a run, worked out on paper: resolved config, actors, batches and memory. Starts
nothing and reads no data, except where rewards have functions of the user's: those are tried on the
data, as at the start of a run.

Counts of interactions and tokens are upper bounds from the config, since only the data knows how
long conversations are. Memory is for float32 and AdamW; activations are rough (stated below),
everything else is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from common.actors.resources import claims, total_cpus, total_gpus
from common.config.run import Run
from common.config.stages import MRL, MemoryAware, RewardModelStage, SupervisedStage
from common.models.reactive.config import RxTConfig, named_config
from common.storage.checkpoint import open_checkpoint
from deploy.tables import table

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
    """The part of one rank in one optimiser step."""
    optimizer_steps: int
    interactions: int
    """At most, over the whole stage: generated in MRL, read elsewhere."""
    tokens: int
    """At most, over the whole stage: generated in MRL, read elsewhere."""


def batches(run: Run, config: RxTConfig) -> list[Batches]:
    """Per stage, and per curriculum step of MRL."""
    ranks = run.learner.ranks
    out = []
    for stage in run.stages:
        if isinstance(stage, MRL):
            update = stage.algorithm_settings
            shares = ranks * update.minibatches
            for step in stage.curriculum:
                interactions = step.iterations * stage.episodes * step.max_steps
                out.append(
                    Batches(
                        name=f"{stage.stage}: {step.name}",
                        batch=stage.episodes,
                        per_rank=math.ceil(stage.episodes / ranks),
                        minibatch_per_rank=math.ceil(stage.episodes / shares),
                        optimizer_steps=step.iterations
                        * stage.algorithm_settings.epochs
                        * stage.algorithm_settings.minibatches,
                        interactions=interactions,
                        tokens=interactions * run.rollout.sampling.max_new_tokens,
                    )
                )
        else:
            sequences = stage.steps * stage.batch_size
            interactions = sequences * _turns(run, stage)
            per_rank = math.ceil(stage.batch_size / ranks)
            out.append(
                Batches(
                    stage.stage,
                    stage.batch_size,
                    per_rank,
                    per_rank,
                    stage.steps,
                    interactions,
                    interactions * config.max_tokens,
                )
            )
    return out


def longest_conversation(run: Run) -> int | None:
    """Follow-ups of the longest conversation that the config lets in; None where only the data
    knows."""
    match run.data.kind:
        case "synth":
            return max(run.data.steps)
        case "babi":
            return run.data.max_questions
        case "sgd":
            return run.data.max_follow_ups
        case _:
            steps = [
                step.max_steps
                for stage in run.stages
                if isinstance(stage, MRL)
                for step in stage.curriculum
            ]
            return max(steps, default=None)


def _turns(run: Run, stage: SupervisedStage) -> int:
    """Interactions per sequence: one, except where a stage reads whole conversations (the first and
    its follow-ups)."""
    follow_ups = longest_conversation(run)
    return 1 + follow_ups if isinstance(stage, MemoryAware) and follow_ups is not None else 1


def learner_bytes(run: Run, config: RxTConfig) -> dict[str, int]:
    """Memory of one learner rank by purpose, at its busiest stage.

    Activations count, per token and layer, the tensors that backward needs (norms, projections,
    gates: about 16 widths plus 3 inner widths of the feed-forward parts in use) and three copies of
    the logits. Attention scores are not stored.
    """
    total = config.parameters()["total"]
    inner = (
        config.decoder_ff * (config.experts_per_token if config.experts else 1) + config.encoder_ff
    )
    per_token = config.layers * (16 * config.width + 3 * inner) + 3 * config.vocab_size
    tokens = max(
        (b.minibatch_per_rank * turns * config.max_tokens for b, turns in _rank_turns(run, config)),
        default=0,
    )
    out = {
        "weights": total * FLOAT_BYTES,
        "gradients": total * FLOAT_BYTES,
        "optimiser": total * OPTIMIZER_FLOATS * FLOAT_BYTES,
        "activations, about": tokens * per_token * FLOAT_BYTES,
    }
    if any(isinstance(stage, MRL) for stage in run.stages):
        out["reference policy"] = total * FLOAT_BYTES
        out["critic, gradients and optimiser"] = (
            critic_parameters(config) * (2 + OPTIMIZER_FLOATS) * FLOAT_BYTES
        )
    return out


def critic_parameters(config: RxTConfig) -> int:
    """Parameters of `common.models.reactive.critic`: embedding and encoder as the policy's, and a
    gated layer, a norm and one value on top."""
    parts, width = config.parameters(), config.width
    return parts["embedding"] + parts["encoder"] + 2 * width * (width + 1) + 2 * width + width + 1


def _rank_turns(run: Run, config: RxTConfig) -> list[tuple[Batches, int]]:
    turns: list[int] = []
    for stage in run.stages:
        turns += (
            [step.max_steps for step in stage.curriculum]
            if isinstance(stage, MRL)
            else [_turns(run, stage)]
        )
    return list(zip(batches(run, config), turns, strict=True))


def rollout_bytes(run: Run, config: RxTConfig) -> dict[str, int]:
    """Memory of one rollout worker by purpose: weights, and per slot its KV cache, its memory and
    that memory's keys and values."""
    slots = run.rollout.slots * config.layers * FLOAT_BYTES
    return {
        "weights": config.parameters()["total"] * FLOAT_BYTES,
        "KV cache of tokens": slots * 2 * config.kv_heads * config.head_dim * config.max_tokens,
        "KV of memory": slots
        * 2
        * (config.cross_kv_heads or config.kv_heads)
        * config.head_dim
        * config.slots,
        "memory": slots * config.slots * config.width,
    }


def model_shape(run: Run) -> RxTConfig:
    """The model's shape: a checkpoint's own, or the named size with the overrides. Raises
    InputError where there is no such checkpoint."""
    if run.model.checkpoint is not None:
        with open_checkpoint(run.model.checkpoint).folder() as folder:
            return RxTConfig.from_pretrained(folder)
    overrides = run.model.model_dump(exclude={"size", "checkpoint"})
    return named_config(run.model.size, vocab_size=run.tokenizer.vocab_size, **overrides)


def require_functions_to_work(run: Run) -> None:
    """Raises InputError where a reward function cannot be loaded or called. The data are read only
    where there is one."""
    # Here and not at the top: a plan otherwise does without the reward service's packages.
    from reward_service.preflight import has_to_try, require_tried

    if has_to_try(run.rewards):
        from common.data.corpus import load_corpus

        require_tried(run.rewards, load_corpus(run.data, run.seed).train)


def plan_text(run: Run) -> str:
    """The whole plan. Raises InputError where the parts of the config do not fit together."""
    last = run.stages[-1]
    if isinstance(last, RewardModelStage) and last.backbone is not None:
        return _backbone_plan(run, last, last.backbone)
    config = model_shape(run)
    counts = [[name, f"{n:,}"] for name, n in config.parameters().items()]
    if isinstance(last, RewardModelStage):
        counts.append(["of the reward model", f"{reward_parameters(config, last.levels):,}"])
    parts = [
        yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip(),
        _actors(run),
        _batches(run, config),
        table("Parameters (vocabulary at its upper bound)", ["part", "count"], counts),
        _memory("Memory of a learner rank", learner_bytes(run, config)),
    ]
    if any(isinstance(stage, MRL) for stage in run.stages):
        parts.append(_memory("Memory of a rollout worker", rollout_bytes(run, config)))
    return "\n\n".join(parts)


def _backbone_plan(run: Run, stage: RewardModelStage, backbone: str) -> str:
    """A reward model of transformers: its shape is its own, and so its memory is not worked out
    here. InputError where it is not there."""
    # Here and not at the top: it brings torch and transformers, which a plan otherwise does
    # without.
    from reward_service.reward_models.model import scoring_config

    config = scoring_config(backbone, backbone, stage.levels)
    rows = [
        [key, str(getattr(config, key))]
        for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    ]
    per_rank = math.ceil(stage.batch_size / run.learner.ranks)
    batch = [[stage.stage, f"{stage.batch_size:,}", f"{per_rank:,}", f"{stage.steps:,}"]]
    return "\n\n".join(
        [
            yaml.safe_dump(
                run.model_dump(mode="json"), sort_keys=False, allow_unicode=True
            ).rstrip(),
            _actors(run),
            table("Batches", ["stage", "prompts", "per rank", "optimiser steps"], batch),
            table(f"The backbone, {backbone}", ["what", "value"], rows),
        ]
    )


def reward_parameters(config: RxTConfig, levels: int) -> int:
    """Parameters of `common.models.reactive.reward`: two encoders with an embedding each, memory
    attention, a look at memory per layer, a norm and the head."""
    parts, width = config.parameters(), config.width
    query, kv = (
        config.cross_query_heads or config.query_heads,
        config.cross_kv_heads or config.kv_heads,
    )
    look = (
        width * config.head_dim * (query + 2 * kv)
        + config.head_dim * query * width
        + width
        + 2 * width
    )
    return (
        2 * (parts["embedding"] + parts["encoder"])
        + parts["memory"]
        + config.layers * look
        + width
        + levels * (width + 1)
    )


def _actors(run: Run) -> str:
    rows = [[c.role, str(c.count), f"{c.cpus:g}", f"{c.gpus:g}"] for c in claims(run)]
    rows.append(["in all", "", f"{total_cpus(run):g}", f"{total_gpus(run):g}"])
    return table("Actors and what each claims", ["role", "count", "CPUs", "GPUs"], rows)


def _batches(run: Run, config: RxTConfig) -> str:
    header = [
        "stage",
        "batch",
        "per rank",
        "rank's step",
        "optimiser steps",
        "interactions ≤",
        "tokens ≤",
    ]
    rows: list[Sequence[str]] = [
        [
            b.name,
            *(
                f"{n:,}"
                for n in (
                    b.batch,
                    b.per_rank,
                    b.minibatch_per_rank,
                    b.optimizer_steps,
                    b.interactions,
                    b.tokens,
                )
            ),
        ]
        for b in batches(run, config)
    ]
    return table("Batches", header, rows)


def _memory(title: str, parts: dict[str, int]) -> str:
    rows = [[name, _mebibytes(size)] for name, size in parts.items()]
    return table(title, ["purpose", "MiB"], [*rows, ["in all", _mebibytes(sum(parts.values()))]])


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f}"
