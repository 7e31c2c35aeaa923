"""The summary that `engram plan` shows: a run's data, stages, rewards and needs on one screen."""

from __future__ import annotations

from collections.abc import Sequence

from common.actors.resources import claims, total_cpus, total_gpus
from common.config.changes import changes
from common.config.run import Run
from common.data.corpus import Corpus
from common.data.overlaps import count_in_both
from common.failures import InputError
from common.models.reactive.config import RxTConfig
from common.storage.run_directory import RunDirectory
from deploy import causal_memory, causal_plan
from deploy.causal_shape import causal_shape
from deploy.checkpoint_plan import checkpoint_line, checkpoint_sizes, write_rate
from deploy.data_plan import READ, Lengths, Work, lengths, require_lengths, works
from deploy.estimate import operations_per_second, stage_seconds
from deploy.layout import table
from deploy.plan import (
    causal_plans,
    learner_bytes,
    mebibytes,
    phase_tables,
    rollout_bytes,
    stage_plans,
)
from deploy.progress import duration
from learner.changed_settings import require_same
from learner.data_warnings import data_warnings
from learner.stages.planning import model_shape, stages_by_group
from learner.summary import run_status
from reward_service.components.table import parts
from rollout.environments.table import ENVIRONMENTS

MOST_KEYS = 4
"""Settings that differ from those of the run, by name."""
MORE = "all settings, batches and memory by purpose: --full"


def plan_summary(run: Run, corpus: Corpus) -> str:
    """The summary. Raises InputError where the data do not fit the configuration."""
    directory = RunDirectory(run.runs, run.name)
    head = f"run {run.name} in {directory.path()} ({_state(run, directory)})"
    found = works(run, corpus)
    if run.stages[-1].own_model is not None:  # lengths and shape are another model's
        return "\n\n".join([head, _data(run, corpus, None), _stages(run, found, None), MORE])
    if run.model.causal is not None:
        return "\n\n".join([head, *_causal(run, corpus, found), MORE])
    config = model_shape(run)
    measured = lengths(run, corpus)
    warning = require_lengths(measured, corpus, config)
    warnings = [warning] if warning else []
    both = count_in_both(corpus.train, corpus.eval)
    if both:
        warnings.append(
            f"{both:,} of {len(corpus.eval):,} held-out conversations stand in the training data, "
            "too"
        )
    warnings += data_warnings(run, corpus)
    asks = any(turn.facts for row in corpus.train for turn in row.interactions)
    if run.needs_rollout and not asks and ENVIRONMENTS[run.environment.kind].plays_rows:
        warnings.append(
            "the data name no facts: recall is neither rewarded nor measured, and answers are "
            "compared with their references"
        )
    shown = [
        head,
        _data(run, corpus, (measured, config)),
        _stages(run, found, (measured, config)),
        *phase_tables(run),
        *([_rewards(run, corpus)] if run.needs_rollout else []),
        _needs(run, config),
        *(f"warning: {each}" for each in warnings),
        MORE,
    ]
    return "\n\n".join(shown)


def _causal(run: Run, corpus: Corpus, found: Sequence[Work]) -> list[str]:
    """The parts of the summary for a causal language model."""
    assert run.model.causal is not None
    shape = causal_shape(run.model.causal)
    rank = sum(causal_memory.learner_bytes(run, shape).values())
    memory = f"{mebibytes(rank)} MiB a learner rank"
    if run.needs_rollout:
        size = sum(causal_memory.rollout_bytes(run, shape).values())
        memory += f", {mebibytes(size)} MiB a rollout worker"
    return [
        _data(run, corpus, None),
        *([f"  {corpus.left_out}"] if corpus.left_out else []),
        _stages(run, found, None),
        *([_rewards(run, corpus)] if run.needs_rollout else []),
        causal_plan.model_table(run, shape),
        f"Needs\n  actors: {causal_plan.roles(run)}\n  memory: {memory}\n  "
        + checkpoint_line(checkpoint_sizes(run, causal_plans(run, shape)), write_rate(run)),
    ]


def _state(run: Run, directory: RunDirectory) -> str:
    """Whether there is such a run, and how its settings differ."""
    status = run_status(directory)
    states = {"new": "a new run", "running": "running: another process drives it"}
    if status in states:
        return states[status]
    before = directory.run()
    try:
        require_same(run, before, directory)
    except InputError as refused:
        return f"{status}; `train` refuses these settings for it: {refused}"
    keys = [change.key for change in changes(before, run)]
    more = f" and {len(keys) - MOST_KEYS} more" if len(keys) > MOST_KEYS else ""
    changed = f" with other settings: {', '.join(keys[:MOST_KEYS])}{more}" if keys else ""
    return f"{status}; the same command goes on with it{changed}"


Shape = tuple[Lengths, RxTConfig] | None


def _data(run: Run, corpus: Corpus, shape: Shape) -> str:
    rows = []
    for name, held in (("train", corpus.train), ("held out", corpus.eval)):
        turns = [turn for row in held for turn in row.interactions]
        facts = sum(len(turn.facts) for turn in turns)
        rows.append([name, f"{len(held):,}", f"{len(turns):,}", f"{facts:,}"])
    text = table("Data", ["", "conversations", "follow-ups", "facts asked for"], rows)
    lines = [text]
    if corpus.preferences:
        lines.append(
            f"  preferences: {len(corpus.preferences):,} to train on, "
            f"{len(corpus.held_preferences):,} held out"
        )
    if run.needs_rollout:
        lines.append(
            f"  evaluated before and after MRL: {min(run.evaluation.episodes, len(corpus.eval)):,} "
            "held-out conversations"
        )
    if shape is not None:
        measured, config = shape
        by = "" if measured.exact else ", an estimate by a tokenizer of a sample of the texts"
        lines.append(
            f"  longest interaction: {measured.longest} tokens of {config.max_tokens} "
            f"(model.max_tokens){by}"
        )
    return "\n".join(lines)


def _count(passes: float) -> str:
    return f"{passes:,.0f}" if passes >= 100 else f"{passes:.3g}"


def _stages(run: Run, found: Sequence[Work], shape: Shape) -> str:
    """Every stage over its data, with a time where one can be told."""
    rate = operations_per_second() if shape is not None else 0.0
    rows, seconds = [], 0.0
    # Of the stages that ranks are started for; a curriculum starts them once.
    started = {id(run.stages[indices[0]]) for indices in stages_by_group(run.stages)}
    for work in found:
        tokens: float | None = None
        took: float | None = None
        if shape is not None and work.examples:
            measured, config = shape
            tokens = work.batch * work.steps * measured.of_example(work.part, work.examples)
            took = stage_seconds(run, work.stage, config, tokens, rate, id(work.stage) in started)
            started.discard(id(work.stage))
        seconds += took or 0.0
        rows.append(
            [
                work.name,
                f"{len(work.examples):,} {_NAMES[work.part]}" if work.examples else "environment",
                f"{work.batch:,}",
                f"{'≤ ' * work.stage.may_end_early}{work.steps:,}",
                "-" if work.passes is None else _count(work.passes),
                "-" if tokens is None else _rounded(tokens),
                "-" if took is None else duration(took),
            ]
        )
    header = ["stage", "learns from", "batch", "steps", "passes", "tokens", "time"]
    lines = [table("Stages (tokens and time are estimates)", header, rows)]
    lines += [
        f"  {work.name}: conversations that sit out: {work.left_out}"
        for work in found
        if work.left_out
    ]
    lines += [f"  {work.name}: {work.rule}" for work in found if work.rule]
    lines += [
        f"  {run.stage_key(index)}: {stage.learns_by}"
        for index, stage in enumerate(run.stages)
        if stage.learns_by
    ]
    if seconds:
        untold = [row[0] for row in rows if row[-1] == "-"]
        without = " and ".join(["evaluations", *untold])
        lines.append(
            f"  in all about {duration(seconds)} on a machine like this one, without {without}\n"
            "  (from the model's arithmetic, rough: `train` shows the time left)"
        )
    else:
        lines.append(
            "  no estimate of time for GPUs, environments and models that are not engram's"
        )
    return "\n".join(lines)


_NAMES = {
    "texts": "texts",
    "pairs": "interactions",
    "train": "conversations",
    READ: "pairs of turns",
    "preferences": "preferences",
}


def _rounded(count: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g}"


def _rewards(run: Run, corpus: Corpus) -> str:
    """The mixes that the run's conversations are paid by, with what their components read."""
    steps = [step for stage in run.stages for step in stage.curriculum_steps]
    used = {row.strategy for row in corpus.train} or {"cumulative"}
    used |= {name for step in steps for name in step.strategies if name is not None}
    rows = []
    for key, mix in run.rewards.mixes().items():
        if key in ("single", "cumulative", "long_term") and key not in used:
            continue
        for number, (name, _, section) in enumerate(parts(mix)):
            rows.append([key if not number else "", name, f"{section.weight:g}", section.reads])
    width = max(len(row[3]) for row in rows)
    header = ["mix", "component", "weight", "reads".ljust(width)]
    return table("Rewards", header, [[*row[:3], row[3].ljust(width)] for row in rows])


def _needs(run: Run, config: RxTConfig) -> str:
    """Actors and memory, a line each."""
    counted = [(claim.count, claim.role) for claim in claims(run)]
    roles = ", ".join(f"{count} {role}{'s' if count > 1 else ''}" for count, role in counted)
    plans = stage_plans(run, config)
    rank = sum(learner_bytes(plans, config).values())
    memory = f"{mebibytes(rank)} MiB a learner rank"
    if run.needs_rollout:
        memory += f", {mebibytes(sum(rollout_bytes(run, config).values()))} MiB a rollout worker"
    return "\n".join(
        [
            "Needs",
            f"  model: {config.parameters()['total']:,} parameters (vocabulary at its upper bound)",
            f"  actors: {roles}; on a cluster they claim {total_cpus(run):g} CPUs and "
            f"{total_gpus(run):g} GPUs, here they share what there is",
            f"  memory: {memory}",
            "  " + checkpoint_line(checkpoint_sizes(run, plans), write_rate(run)),
        ]
    )
