"""The loop of the supervised stages: data in a seeded order, one objective, one optimiser,
checkpoints that resume exactly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from torch import nn

from common.config.stages import SupervisedStage
from common.data.special_tokens import spoken_ids
from common.data.tokenizer import ConversationTokenizer
from common.episode import Interaction, Row
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.parts import part_of
from common.models.reactive.unroll import TurnTokens
from common.seeding import derive
from common.storage.checkpoint import Checkpoint, latest_checkpoint
from common.storage.run_directory import RunDirectory
from common.telemetry.metrics import Metrics
from learner.checkpointing import StageState, save_training, take_over
from learner.metrics import Pace, record_parts, record_step
from learner.parallel.group import Group, Job
from learner.parallel.optimizer import LossTerm, Trainer, combine_passes
from learner.recorder import Recorder, RecorderClient
from learner.reporter import Reporter
from learner.resume import run_corpus
from learner.stages.stage import definition_of
from learner.stages.until import Until
from learner.training_state import Position, TrainingState
from learner.unfreezing import Unfreezing, told


class Objective(Protocol):
    model: Any
    """The model that checkpoints open as."""
    modules: dict[str, nn.Module]
    """Modules that may be trained, by the prefix of their parameters' names; those outside "model"
    are saved beside it."""
    beside: ClassVar[dict[str, str]] = {}
    """Part of the model that a module beside it learns with, where the stage has phases."""

    @property
    def examples(self) -> int: ...

    def trainable(self, name: str) -> bool: ...

    def tokens(self, index: int, step: int) -> int:
        """Tokens of an example that a step trains on."""
        ...

    def terms(self, indices: Sequence[int], step: int, group: Group) -> list[LossTerm]:
        """Losses of some examples, of none on some ranks."""
        ...

    def passes(self, indices: Sequence[int], step: int, group: Group) -> Iterator[list[LossTerm]]:
        """The same in parts, at least one, each of which is computed when the graph of the one
        before is freed. The counts of each part are those of all examples."""
        yield self.terms(indices, step, group)

    def after_step(
        self, done: int, group: Group, metrics: Metrics, directory: RunDirectory
    ) -> None:
        """Called on all ranks after each step of the stage, for what an objective measures on held
        out data."""
        return


def supervised_loop(group: Group, job: Job, recorder: Recorder | RecorderClient) -> None:
    """Stage `job.stage` of the run from the last checkpoint to its end, or to a requested stop."""
    training = SupervisedTraining(group, job, recorder)
    learner, done, until = job.run.learner, training.position.in_stage, training.until
    while not until.has_ended(done):
        training.step(done)
        done += 1
        training.unfreeze(done)
        training.objective.after_step(done, group, training.metrics, job.directory)
        log, save = (
            done % every == 0 or until.has_ended(done)
            for every in (learner.log_every, learner.checkpoint_every)
        )
        # A row never spans a checkpoint: a run that resumes there could only write the half of it
        # that follows.
        if log or save:
            training.pace.record(training.metrics)
            training.reporter.record(done, training.metrics)
        stop = log and training.reporter.stop_requested()
        if save or stop:
            training.save(done)
        if stop:
            return


def _whole(name: str) -> str:
    """The part that a parameter of a model without parts belongs to."""
    return "model"


class SupervisedTraining:
    """State of a rank in a supervised stage, as the last checkpoint left it."""

    def __init__(self, group: Group, job: Job, recorder: Recorder | RecorderClient):
        self.group, self.job = group, job
        self.stage = cast(SupervisedStage, job.run.stages[job.stage])
        checkpoint = latest_checkpoint(job.directory)
        assert checkpoint is not None, "the driver writes a checkpoint before the first stage"
        self.position = Position.of(checkpoint, job.stage)
        self.objective, self._write_tokenizer = build_objective(
            job, checkpoint, self.position.in_stage
        )
        modules = self.objective.modules
        for module in modules.values():
            module.to(group.device).train()
        held = TrainingState.of(checkpoint)
        reactive = isinstance(modules.get("model"), ReactiveTransformer)
        self.unfreezing = Unfreezing(
            self.stage.phases, part_of if reactive else _whole, self.objective.beside
        )
        self.unfreezing.load(held.phases_in(job.stage), self.position.in_stage)
        self.trainer = Trainer(
            modules, self.stage.optimizer, self.stage.total_steps, group, self._scale
        )
        self.until = Until(self.stage, held.until_in(job.stage))
        extras = {name: module for name, module in modules.items() if name != "model"}
        self._beside = StageState(self.stage.stage, {"optimizer": self.trainer}, extras)
        exact = True
        if self.position.in_stage:
            exact = self._beside.resume(checkpoint)
        else:
            take_over(checkpoint, extras)
        self.reporter = Reporter(group, recorder, self.stage.stage, self.position, checkpoint)
        if not exact:
            self.reporter.tell_of_lost_moments(checkpoint)
        self.metrics, self.pace = Metrics(), Pace()

    def _scale(self, name: str) -> float:
        return self.objective.trainable(name) * self.unfreezing.scale(name)

    def unfreeze(self, done: int) -> None:
        """Let parts begin to learn that are due after `done` steps of the stage."""
        begun = self.unfreezing.advance(done)
        if begun:
            self.trainer.select()
            if self.group.rank == 0:
                self.reporter.note(told(self.stage.stage, done, begun))

    def step(self, step: int) -> None:
        """One optimiser step on this rank's share of a batch."""
        group, stage, metrics, started = self.group, self.stage, self.metrics, time.perf_counter()
        batch = batch_indices(
            self.job.run.seed, stage.stage, self.objective.examples, stage.batch_size, step
        )
        indices = batch[group.rank :: group.size]
        sums: dict[str, tuple[float, float]] = {}
        passes = group.precision.each(self.objective.passes(indices, step, group))
        losses = combine_passes(passes, group, sums)
        norm, rate = self.trainer.update(losses, step, self.until.rate_factor(step))
        self.until.observe(step + 1, sums, group)
        for name, (total, count) in sums.items():
            if count:
                metrics.record(name, total / count, weight=count)
        record_step(self.trainer, norm, rate, metrics)
        record_parts(self.trainer, self.unfreezing, metrics)
        seconds = time.perf_counter() - started
        metrics.record("time/phase_seconds", seconds, phase="train", role="learner")
        tokens = sum(self.objective.tokens(index, step) for index in indices)
        self.pace.count(tokens, seconds, metrics)
        if group.rank == 0:
            metrics.record("train/steps", 1)
            told = self.until.sentence(step + 1)
            if told is not None:
                self.reporter.note(told)
        metrics.record("train/sequences", len(indices))

    def save(self, done: int) -> None:
        """A checkpoint after `done` steps of the stage; every rank calls it."""
        state = self.reporter.state(done)
        if self.group.rank == 0:
            until, ended = self.until.state(), self.until.has_ended(done)
            save_training(
                self.job.directory,
                self.position.base + done,
                self.objective.model,
                self._write_tokenizer,
                replace(state, until=until, ended=ended, phases=self.unfreezing.begun),
                self.job.run.learner.keep_checkpoints,
                self._beside,
            )
        self.reporter.saved()


def build_objective(
    job: Job, checkpoint: Checkpoint, in_stage: int
) -> tuple[Objective, Callable[[Path], None]]:
    """The stage's objective, and a function that writes its tokenizer into a folder.

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
    return [turn_tokens(turn, tokenizer) for turn in row.turns]


def turn_tokens(turn: Interaction, tokenizer: ConversationTokenizer) -> TurnTokens:
    """A turn as the data set has it; memory is written with its answer, and not with its
    thought."""
    query = tokenizer.prompt(turn.query, turn.think is not None)
    answer = tokenizer.answer(turn.answer, turn.think)
    return TurnTokens(query, answer, spoken_ids(query, answer))


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
