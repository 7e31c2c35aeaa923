"""Stage 5, Memory Reinforcement Learning: publish weights, have conversations played and scored,
learn from them; synchronous.

    publish ──► collect ──► evaluate (reference, critic, advantages) ──► update ──► checkpoint

One iteration is one batch of episodes, all made with the weights that are then updated. Every rank
runs this loop on its share.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from common.config.mrl import MRL, TRAINED
from common.failures import Drained, InputError, Unavailable
from common.seeding import derive
from common.storage.checkpoint import (
    BEST,
    FOLDER,
    Checkpoint,
    checkpoint_name,
    latest_checkpoint,
    mark_best,
    open_checkpoint,
)
from common.telemetry.metrics import Metrics
from common.weights import PackedWeights
from learner.checkpointing import StageState, save_training, take_over
from learner.curriculum import Curriculum
from learner.episode_source import ConductorSource, EpisodeSource, Shard
from learner.evaluation.curriculum import QUALITY, HeldOutCurriculum
from learner.evaluation.held_out import HeldOut
from learner.evaluation.measure import training_values
from learner.metrics import record_episodes, record_kl, record_position, record_staleness
from learner.parallel.group import Group, Job
from learner.policies.table import CheckpointPolicy, open_policy
from learner.recorder import Recorder, RecorderClient
from learner.reporter import Reporter
from learner.resume import run_corpus
from learner.rl.algorithms.table import make_algorithm
from learner.rl.update import Update
from learner.training_state import Best, Position, RLState, TrainingState
from learner.unfreezing import told
from reward_service.components.recall import words_of_values
from rollout.iterations import RolloutState
from rollout.tasks import Plan, plan_of

log = logging.getLogger(__name__)


def mrl_loop(group: Group, job: Job, recorder: Recorder | RecorderClient) -> None:
    """The stage under Ray Train: episodes come from the run's conductor."""
    train_on(group, job, recorder, ConductorSource(job))


def train_on(
    group: Group, job: Job, recorder: Recorder | RecorderClient, source: EpisodeSource
) -> None:
    """MRL from the last checkpoint to the end of the curriculum, or to a requested stop.

    Where episodes cannot be scored because something is away, the stage ends early, with a
    checkpoint, and the recorder is told why.
    """
    training = RLTraining(group, job, recorder, source)
    curriculum, position, metrics = training.curriculum, training.position, training.metrics
    update, reporter, saved = training.update, training.reporter, position.in_stage
    training.measure_first()
    while not curriculum.finished:
        iteration = curriculum.done
        version = position.base + iteration
        with training.phase("publish"):
            if group.rank == 0:
                publish(training.weights(version), source, metrics)
            reporter.barrier()  # nobody asks for episodes of weights that are not out yet
        with training.phase("collect"):
            episodes, samples = training.settings.episodes, update.algorithm.needs.samples
            plan = plan_of(curriculum.steps, curriculum.index, episodes, samples)
            batch, away = collect(source, iteration, version, plan, group)
        if batch is None:
            if saved < iteration:
                training.save(iteration)
            if away is not None:
                recorder.fail(Drained(f"{away}; stopped at step {version}"), "")
            return
        with training.phase("evaluate"):
            if iteration == 0:
                update.begin_critic(batch.episodes)
            experience = update.evaluate(batch.episodes, batch.indices)
            end = training.end_token
            reporter.show(record_episodes(experience, training.known, metrics, end))
            record_staleness(experience.episodes, version, metrics)
            figures = trained_figures(metrics, group)
        with training.phase("update"):
            update.kl.update(record_kl(experience, group, metrics), batch.total)
            update.rate = curriculum.step.learning_rate
            update.run(experience, batch.indices, batch.total, iteration)
        if group.rank == 0:
            source.trained(iteration, version + 1)
            record_position(update.kl, curriculum, metrics)
            metrics.merge(source.metrics())

        done = iteration + 1
        is_best = training.advance(done, figures)
        begun = update.unfreeze(done, figures.get("objective/scores"))
        if begun and group.rank == 0:
            reporter.note(told(training.settings.stage, done, begun))
        reporter.record(done, metrics)
        stop = reporter.stop_requested()
        due = done % job.run.learner.checkpoint_every == 0
        if due or curriculum.finished or stop or is_best:
            training.save(done)
            saved = done
        if stop:
            return


class RLTraining:
    """State of a rank in MRL, as the last checkpoint left it."""

    def __init__(
        self,
        group: Group,
        job: Job,
        recorder: Recorder | RecorderClient,
        source: EpisodeSource,
    ):
        self.group, self.job, self.source = group, job, source
        self.settings = cast(MRL, job.run.stages[job.stage])
        checkpoint = latest_checkpoint(job.directory)
        assert checkpoint is not None, "the driver writes a checkpoint before the first stage"
        self.position = Position.of(checkpoint, job.stage)
        self.curriculum, self.metrics = Curriculum(self.settings.curriculum), Metrics()
        self._opened = open_policy(checkpoint, job.run.model.causal)
        nn.Module.to(self._opened.module, group.device)
        self.update = build_update(job, self._opened, self.curriculum.total, group, self.metrics)
        modules = self.update.modules | self.update.policy.beside
        self._beside = StageState(self.settings.stage, self.update.trainers, modules)
        self.best: Best | None = None
        self._exact = True
        """Whether the stage goes on with the state of its optimisers, where it goes on."""
        begun = self._resume(checkpoint) if self.position.in_stage else RolloutState()
        if group.rank == 0:
            source.load_state(begun)
        self.reporter = Reporter(group, recorder, self.settings.stage, self.position, checkpoint)
        if not self._exact:
            self.reporter.tell_of_lost_moments(checkpoint)
        self.known = words_of_values(training_values(job.directory))
        """Values of the training data, as the metrics of recall take them."""
        self.held_out = self._held_out() if self.settings.evaluate_every else None

    def _resume(self, checkpoint: Checkpoint) -> RolloutState:
        """Take over what the stage saved; the state of the rollout is the source's."""
        state = TrainingState.of(checkpoint)
        self.update.resume_phases(state.phases, state.done)  # first: frozen parts have no moments
        self._exact = self._beside.resume(checkpoint)
        held = state.rl
        assert held is not None, "a checkpoint inside the stage has what the stage saved"
        self.update.kl.coefficient = held.kl_coefficient
        self.update.algorithm.load_state(held.algorithm)
        self.best = self._best_that_is_left(held.best)
        self.curriculum.load(held.curriculum)
        return held.rollout

    def _best_that_is_left(self, best: Best | None) -> Best | None:
        """The best weights of the checkpoint that the stage resumes from; None where theirs is gone
        or damaged, so that those it resumes from are measured anew. A run that was killed had
        perhaps marked another one."""
        if best is None:
            return None
        name = checkpoint_name(best.step)
        try:
            open_checkpoint(self.job.directory.path(f"{FOLDER}/{name}"))
        except InputError as gone:
            log.warning("the best weights are not there any more: %s", gone)
            return None
        if self.group.rank == 0:
            mark_best(self.job.directory, name)
        return best

    def _held_out(self) -> HeldOutCurriculum:
        """The measurements of the policy; data are read on rank 0 alone, which plays them."""
        held_out = None
        if self.group.rank == 0:
            corpus = run_corpus(self.job.run, self.job.directory)
            held_out = HeldOut(self._opened, corpus.eval, corpus.train)
        return HeldOutCurriculum(self.job.run, self.settings, held_out, self.group)

    @property
    def end_token(self) -> int:
        """The token that ends an answer."""
        return int(self._opened.tokenizer.eos_id)

    def weights(self, version: int) -> PackedWeights:
        """The policy's present weights, for rollout workers."""
        return self._opened.weights(version)

    def measure_first(self) -> None:
        """Measure the weights that the stage begins with: they are the best so far."""
        if self.held_out is None or self.best is not None:
            return
        with self.phase("measure"):
            found = self.held_out.measure(self.curriculum.step, self.metrics)
        step = self.position.base + self.position.in_stage
        self.best = Best(found[QUALITY], step)
        if self.group.rank == 0:
            mark_best(self.job.directory, checkpoint_name(step))

    def advance(self, done: int, figures: dict[str, float]) -> bool:
        """Measure where that is due, and let the curriculum count an iteration; whether its weights
        are the best so far. figures: of the episodes that it learnt from."""
        measured: dict[str, float] = {}
        last = done == self.curriculum.total
        if self.held_out is not None and (last or done % self.settings.evaluate_every == 0):
            with self.phase("measure"):
                measured = self.held_out.measure(self.curriculum.step, self.metrics)
        told = self.curriculum.advance(figures | measured)
        if told is not None and self.group.rank == 0:
            self.reporter.note(told)
        if self.held_out is not None and self.curriculum.finished and not measured:
            with self.phase("measure"):
                measured = self.held_out.measure(None, self.metrics)
        # Of equals the later one: it has learnt from more.
        if not measured or (self.best is not None and measured[QUALITY] < self.best.quality):
            return False
        self.best = Best(measured[QUALITY], self.position.base + done)
        return True

    def _take_best(self, done: int) -> None:
        """At the end of the stage: the weights that were measured to be the best, on every
        rank."""
        best, step = self.best, self.position.base + done
        if best is None or best.step == step:
            return
        checkpoint = open_checkpoint(self.job.directory.path(f"{FOLDER}/{BEST}"))
        adapted = self.update.policy.beside
        if adapted and best.step > self.position.base:
            # Merged weights would become what lies under the adapters, which is the reference.
            take_over(checkpoint, adapted)
        else:
            self._opened.take(open_policy(checkpoint))
        if self.group.rank == 0:
            kept = f"the weights of step {best.step}, the best on held-out conversations"
            if best.step <= self.position.base:
                kept = f"the weights that it began with, of step {best.step}: nothing that it "
                kept += "learnt was better on held-out conversations"
            self.reporter.note(f"{self.settings.stage} ends with {kept} ({best.quality:.4g})")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase and says that the rank is in it."""
        self.reporter.phase(name)
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.metrics.record("time/phase_seconds", seconds, phase=name, role="learner")
        self.metrics.record("time/idle_fraction", name == "collect", seconds, role="learner")

    def save(self, done: int) -> None:
        """A checkpoint after `done` iterations; every rank calls it."""
        update, step = self.update, self.position.base + done
        with self.phase("checkpoint"):
            if self.curriculum.finished:
                self._take_best(done)
            state = self.reporter.state(done)
            if self.group.rank == 0:
                rl = RLState(
                    update.kl.coefficient,
                    update.algorithm.state(),
                    self.curriculum.state(),
                    self.source.state(),
                    self.best,
                )
                ended = self.curriculum.finished and self.settings.may_end_early
                save_training(
                    self.job.directory,
                    step,
                    self._opened.module,
                    self._opened.tokenizer.save,
                    replace(state, rl=rl, ended=ended, phases=update.unfreezing.begun),
                    self.job.run.learner.keep_checkpoints,
                    self._beside,
                )
                if self.best is not None and self.best.step == step:
                    mark_best(self.job.directory, checkpoint_name(step))
            self.reporter.saved()


def trained_figures(metrics: Metrics, group: Group) -> dict[str, float]:
    """Figures of an iteration's episodes over all ranks, by the names that a rule of the curriculum
    knows; without those that nothing counts for."""
    cells = [metrics.mean_of(name) for name in TRAINED]
    own = torch.tensor(cells, dtype=torch.float64, device=group.device)
    everywhere = group.sum(own).tolist()
    return {
        name: total / weight
        for name, (total, weight) in zip(TRAINED, everywhere, strict=True)
        if weight
    }


def collect(
    source: EpisodeSource, iteration: int, version: int, plan: Plan, group: Group
) -> tuple[Shard | None, Unavailable | None]:
    """This rank's episodes, made with weights `version`, or None on all ranks where one of them was
    told that episodes cannot be scored for now; and what it was told.

    Ranks ask one after the other: an endpoint may be away for one of them, and back before another
    asks.
    """
    shard, away = None, None
    try:
        shard = source.collect(iteration, version, plan, group.rank, group.size)
    except Unavailable as told:
        away = told
    anywhere = group.max(torch.tensor(float(away is not None), device=group.device)) > 0
    return (None if anywhere else shard), away


def build_update(
    job: Job, opened: CheckpointPolicy, steps: int, group: Group, metrics: Metrics
) -> Update:
    """The update of a rank as it is when the stage begins."""
    run, settings = job.run, cast(MRL, job.run.stages[job.stage])
    policy = opened.trainable(settings, group, run.learner)
    # Ranks must begin with the same critic.
    torch.manual_seed(derive(run.seed, "critic", job.stage))
    return Update(
        policy,
        make_algorithm(settings, run.rewards),
        settings,
        steps,
        run.rollout.sampling.temperature,
        derive(run.seed, "mrl", job.stage),
        group,
        metrics,
    )


def publish(weights: PackedWeights, source: EpisodeSource, metrics: Metrics) -> None:
    """Hand weights to the rollout workers."""
    started = time.perf_counter()
    source.publish(weights)
    metrics.record("sync/seconds", time.perf_counter() - started)
    metrics.record("sync/bytes", sum(array.nbytes for array in weights.tensors.values()))
    metrics.record("sync/version", weights.version)
