"""The loop of the supervised stages: data in a seeded order, one objective, one optimiser,
checkpoints that resume exactly."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn

from common.config.stages import SupervisedStage
from common.data.tokenizer import ConversationTokenizer
from common.episode import Row
from common.models.reactive.unroll import TurnTokens
from common.seeding import derive
from common.storage.checkpoint import Checkpoint, latest_checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.metrics import Metrics
from learner.checkpointing import resume_training, save_training, take_over
from learner.metrics import Pace
from learner.parallel.group import Group, Job
from learner.parallel.optimizer import LossTerm, Trainer, combine
from learner.recorder import Recorder, RecorderClient
from learner.reporter import Position, Reporter
from learner.resume import run_corpus
from learner.stages.stage import definition_of


class Objective(Protocol):
    model: Any
    """What checkpoints open as."""
    modules: dict[str, nn.Module]
    """What may be trained, by the beginning of its parameters' names; what is not under "model" is
    saved beside it."""

    @property
    def examples(self) -> int: ...

    def trainable(self, name: str) -> bool: ...

    def tokens(self, index: int, step: int) -> int:
        """Tokens of an example that a step trains on."""
        ...

    def terms(self, indices: Sequence[int], step: int, group: Group) -> list[LossTerm]: ...

    def after_step(
        self, done: int, group: Group, metrics: Metrics, directory: RunDirectory
    ) -> None:
        """Called on all ranks after each step of the stage, for what an objective measures on held
        out data."""
        return


def supervised_loop(group: Group, job: Job, recorder: Recorder | RecorderClient) -> None:
    """Stage `job.stage` of the run from the last checkpoint to its end, or to a requested stop."""
    run, settings = job.run, job.run.stages[job.stage]
    stage = cast(SupervisedStage, settings)
    checkpoint = latest_checkpoint(job.directory)
    assert checkpoint is not None, "the pipeline writes a checkpoint before the first stage"
    position = Position.of(checkpoint, job.stage)
    objective, write_tokenizer = build_objective(job, checkpoint, position.in_stage)
    for module in objective.modules.values():
        module.to(group.device).train()
    trainer = Trainer(objective.modules, stage.optimizer, stage.steps, group, objective.trainable)
    extras = {name: module for name, module in objective.modules.items() if name != "model"}
    with checkpoint.folder() as folder:
        if position.in_stage:
            resume_training(folder, {"optimizer": trainer}, extras)
        else:
            take_over(folder, extras)
    reporter = Reporter(group, recorder, stage.stage, stage.steps, position, checkpoint)

    metrics, pace = Metrics(), Pace()
    for step in range(position.in_stage, stage.steps):
        started = time.perf_counter()
        indices = batch_indices(run.seed, stage.stage, objective.examples, stage.batch_size, step)[
            group.rank :: group.size
        ]
        terms = objective.terms(indices, step, group)
        loss, sums = combine(terms, group)
        norm, rate = trainer.update(loss, step)

        for name, (total, count) in sums.items():
            if count:
                metrics.record(name, total / count, weight=count)
        metrics.record("train/gradient_norm", norm)
        metrics.record("train/learning_rate", rate)
        metrics.record("train/gradient_clipped", norm > stage.optimizer.max_grad_norm)
        seconds = time.perf_counter() - started
        metrics.record("time/phase_seconds", seconds, phase="train", role="learner")
        pace.count(sum(objective.tokens(index, step) for index in indices), seconds, metrics)
        if group.rank == 0:
            metrics.record("train/steps", 1)
        metrics.record("train/sequences", len(indices))

        done = step + 1
        objective.after_step(done, group, metrics, job.directory)
        log, save = (
            done % every == 0 or done == stage.steps
            for every in (run.learner.log_every, run.learner.checkpoint_every)
        )
        if (
            log or save
            # a row never spans a checkpoint: a run that resumes there could only write the half of
            # it that follows
        ):
            pace.record(metrics)
            reporter.record(done, metrics)
        stop = log and reporter.stop_requested()
        if save or stop:
            state = reporter.state(done)
            if group.rank == 0:
                keep, trainers = run.learner.keep_checkpoints, {"optimizer": trainer}
                save_training(
                    job.directory,
                    position.base + done,
                    objective.model,
                    write_tokenizer,
                    state,
                    keep,
                    trainers,
                    extras,
                )
            reporter.saved()
        if stop:
            return


def build_objective(
    job: Job, checkpoint: Checkpoint, in_stage: int
) -> tuple[Objective, Callable[[Path], None]]:
    """What the stage trains, and what writes its tokenizer into a folder.

    The corpus is made anew on every rank from the configuration: the same on each, nothing to ship,
    and checked against the run's fingerprint, since a file may have been edited while the run was
    going.
    """
    run, stage = job.run, job.run.stages[job.stage]
    corpus, seed = run_corpus(run, job.directory), derive(run.seed, "stage", job.stage)
    torch.manual_seed(
        derive(seed, "new modules")
    )  # or ranks, and a run that resumes here, would begin with other heads
    make = definition_of(stage).objective
    assert make is not None, f"{stage.stage} has no objective for the supervised loop"
    return make(stage, corpus, checkpoint, in_stage, seed)


def row_tokens(row: Row, tokenizer: ConversationTokenizer) -> list[TurnTokens]:
    """A conversation as the data set has it, every turn teacher forced."""
    turns = []
    for turn in row.turns:
        query, answer = (
            tokenizer.prompt(turn.query, turn.think is not None),
            tokenizer.answer(turn.answer, turn.think),
        )
        turns.append(TurnTokens(query, answer, [*query, *answer]))
    return turns


def batch_indices(seed: int, purpose: str, examples: int, batch_size: int, step: int) -> list[int]:
    """Examples of one step: every epoch is a new seeded shuffle, and a batch may span two. A pure
    function, so the step is the position."""
    picked: list[int] = []
    start = step * batch_size
    while len(picked) < batch_size:
        epoch, offset = divmod(start + len(picked), examples)
        order = np.random.default_rng(derive(seed, "order", purpose, epoch)).permutation(examples)
        picked += order[offset : offset + batch_size - len(picked)].tolist()
    return picked
