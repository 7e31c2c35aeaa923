"""The plan of a run, worked out on paper: resolved config, actors, batches and memory. Starts
nothing. What the data come to is in `plan_summary.py`.

Counts of interactions and tokens are upper bounds from the config, since only the data knows how
long conversations are. Memory is for float32 and AdamW; activations are rough (stated below),
everything else is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml

from common.actors.resources import claims, total_cpus, total_gpus
from common.config.run import Run
from common.models.reactive.config import RxTConfig
from common.models.reactive.parts import PARTS
from deploy import causal_memory, causal_plan
from deploy.causal_shape import CausalShape, causal_shape
from deploy.checkpoint_plan import causal_stored, checkpoint_sizes, checkpoint_table, write_rate
from deploy.layout import table
from learner.stages.planning import FLOAT_BYTES, OPTIMIZER_FLOATS, StagePlan, model_shape
from learner.stages.stage import definition_of


def stage_plans(run: Run, config: RxTConfig) -> list[StagePlan]:
    """Every stage on paper."""
    return [definition_of(stage).plan(stage, run, config) for stage in run.stages]


def causal_plans(run: Run, shape: CausalShape) -> list[StagePlan]:
    """Every stage of a causal language model on paper."""
    sizes: Any = shape  # batches ask for the longest sequence alone
    plans = [definition_of(stage).plan(stage, run, sizes) for stage in run.stages]
    return [
        replace(plan, stored=causal_stored(run, index, shape)) for index, plan in enumerate(plans)
    ]


def learner_bytes(plans: Sequence[StagePlan], config: RxTConfig) -> dict[str, int]:
    """Memory of one learner rank by purpose, at its busiest stage.

    Activations count, per token and layer, the tensors that backward needs (norms, projections,
    gates: about 16 widths, 4 more for a second read of memory, plus 3 inner widths of the
    feed-forward parts in use) and three copies of the logits. Attention scores are not stored.
    """
    total = config.parameters()["total"]
    inner = (
        config.decoder_ff * (config.experts_per_token if config.experts else 1) + config.encoder_ff
    )
    widths = 16 + 4 * (config.memory_reads - 1)
    per_token = config.layers * (widths * config.width + 3 * inner) + 3 * config.vocab_size
    batches = [each for plan in plans for each in plan.batches]
    tokens = max((b.minibatch_per_rank * b.turns * config.max_tokens for b in batches), default=0)
    out = {
        "weights": total * FLOAT_BYTES,
        "gradients": total * FLOAT_BYTES,
        "optimiser": total * OPTIMIZER_FLOATS * FLOAT_BYTES,
        "activations, about": tokens * per_token * FLOAT_BYTES,
    }
    for plan in plans:
        out |= plan.memory
    return out


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


def plan_text(run: Run) -> str:
    """The whole plan. Raises InputError where the parts of the config do not fit together."""
    resolved = yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    last = run.stages[-1]
    parts = [resolved.rstrip(), _actors(run)]
    if last.own_model is not None:
        own_plan = definition_of(last).own_plan
        assert own_plan is not None, f"{last.stage} takes a model of its own and cannot plan it"
        plan = own_plan(last, run)
        shape = [[key, value] for key, value in plan.model.items()]
        model = table(f"The model, {last.own_model}", ["what", "value"], shape)
        return "\n\n".join([*parts, _batches(run, [plan]), model])
    if run.model.causal is not None:
        return "\n\n".join([*parts, *_causal(run)])
    config = model_shape(run)
    plans = stage_plans(run, config)
    counts = config.parameters()
    for plan in plans:
        counts |= plan.parameters
    rows = [[name, f"{count:,}"] for name, count in counts.items()]
    parts += [
        _batches(run, plans),
        *_algorithms(run),
        *phase_tables(run),
        table("Parameters (vocabulary at its upper bound)", ["part", "count"], rows),
        _memory("Memory of a learner rank", learner_bytes(plans, config)),
    ]
    if run.needs_rollout:
        parts.append(_memory("Memory of a rollout worker", rollout_bytes(run, config)))
    parts.append(checkpoint_table(checkpoint_sizes(run, plans), write_rate(run)))
    return "\n\n".join(parts)


def _algorithms(run: Run) -> list[str]:
    """The algorithm of each stage with rollouts, a table; none where no stage has any."""
    rows = [
        [run.stage_key(index), stage.learns_by]
        for index, stage in enumerate(run.stages)
        if stage.learns_by
    ]
    return [table("Algorithms", ["stage", "learns by"], rows)] if rows else []


def _causal(run: Run) -> list[str]:
    """Batches, model and memory of a run of a causal language model."""
    assert run.model.causal is not None
    shape = causal_shape(run.model.causal)
    plans = causal_plans(run, shape)
    shown = [
        _batches(run, plans),
        causal_plan.model_table(run, shape),
        _memory("Memory of a learner rank", causal_memory.learner_bytes(run, shape)),
    ]
    if run.needs_rollout:
        shown.append(_memory("Memory of a rollout worker", causal_memory.rollout_bytes(run, shape)))
    return [*shown, checkpoint_table(checkpoint_sizes(run, plans), write_rate(run))]


def phase_tables(run: Run) -> list[str]:
    """When which parts of the model begin to learn, a table for each stage that has phases."""
    shown = []
    for index, stage in enumerate(run.stages):
        rows = []
        for phase in stage.phases:
            begins = (
                []
                if phase.after is None
                else [f"after {phase.after:,}" if phase.after else "start"]
            )
            begins += [] if phase.reward is None else [f"at reward {phase.reward:g}"]
            rows.append([" or ".join(begins), ", ".join(phase.train), f"{phase.learning_rate:g}"])
        named = {part for phase in stage.phases for part in phase.train}
        left = ", ".join(part for part in PARTS if part not in named)
        if rows and left:
            rows.append(["never", left, "-"])
        if rows:
            title = f"Phases of {run.stage_key(index)}"
            shown.append(table(title, ["begins", "parts that learn from then on", "rate ×"], rows))
    return shown


def _actors(run: Run) -> str:
    rows = [[c.role, str(c.count), f"{c.cpus:g}", f"{c.gpus:g}"] for c in claims(run)]
    rows.append(["in all", "", f"{total_cpus(run):g}", f"{total_gpus(run):g}"])
    return table("Actors and what each claims", ["role", "count", "CPUs", "GPUs"], rows)


def _batches(run: Run, plans: Sequence[StagePlan]) -> str:
    header = ["stage", "learns from", "batch", "per rank", "rank's step", "optimiser steps"]
    header += ["interactions ≤", "tokens ≤"]
    rows: list[Sequence[str]] = []
    for stage, plan in zip(run.stages, plans, strict=True):
        for b in plan.batches:
            counts = (b.batch, b.per_rank, b.minibatch_per_rank, b.optimizer_steps)
            numbers = (*counts, b.interactions, b.tokens)
            data = ", ".join(definition_of(stage).data)
            rows.append([b.name, data, *(f"{number:,}" for number in numbers)])
    return table("Batches", header, rows)


def _memory(title: str, parts: dict[str, int]) -> str:
    rows = [[name, mebibytes(size)] for name, size in parts.items()]
    return table(title, ["purpose", "MiB"], [*rows, ["in all", mebibytes(sum(parts.values()))]])


def mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f}"
