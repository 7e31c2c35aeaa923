"""Stage 5, Memory Reinforcement Learning: publish weights, have conversations played and scored,
learn from them; synchronous.

    publish ──► collect ──► evaluate (reference, critic, advantages) ──► update ──► checkpoint

One iteration is one batch of episodes, all made with the weights that are then updated. Every rank
runs this loop on its share.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from common.config.mrl import MRL, CurriculumStep
from common.failures import Drained, Unavailable
from common.seeding import derive
from common.storage.checkpoint import Checkpoint, latest_checkpoint
from common.telemetry.metrics import Metrics
from common.weights import pack
from learner.checkpointing import resume_training, save_training
from learner.curriculum import Curriculum
from learner.episode_source import ConductorSource, EpisodeSource, Shard
from learner.evaluation.measure import training_values
from learner.metrics import record_episodes, record_kl, record_position
from learner.parallel.group import Group, Job
from learner.policies.table import CheckpointPolicy, open_policy
from learner.recorder import Recorder, RecorderClient
from learner.reporter import Position, Reporter
from learner.rl.algorithms.table import make_algorithm
from learner.rl.update import Update
from learner.training_state import RLState, TrainingState
from learner.unfreezing import told
from reward_service.components.recall import words_of_values
from rollout.iterations import RolloutState
from rollout.tasks import Plan


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
    update, reporter, saved = training.update, training.reporter, training.position.in_stage
    for iteration in range(position.in_stage, curriculum.total):
        version = position.base + iteration
        with training.phase("publish"):
            if group.rank == 0:
                publish(update, source, version, metrics)
            reporter.barrier()  # nobody asks for episodes of weights that are not out yet
        with training.phase("collect"):
            plan = plan_of(curriculum.step, training.settings.episodes)
            batch, away = collect(source, iteration, version, plan, group)
        if batch is None:
            if saved < iteration:
                training.save(iteration)
            if away is not None:
                recorder.fail(Drained(f"{away}; stopped at step {version}"), "")
            return
        with training.phase("evaluate"):
            experience = update.evaluate(batch.episodes, batch.indices)
            record_episodes(experience, training.known, metrics)
        with training.phase("update"):
            update.kl.update(record_kl(experience, group, metrics), batch.total)
            update.run(experience, batch.indices, batch.total, iteration)
        if group.rank == 0:
            source.trained(iteration, version + 1)
            record_position(update.kl, curriculum, metrics)
            metrics.merge(source.metrics())
        curriculum.advance()

        done = iteration + 1
        begun = update.unfreeze(done, experience)
        if begun and group.rank == 0:
            reporter.note(told(training.settings.stage, done, begun))
        reporter.record(done, metrics)
        stop = reporter.stop_requested()
        if done % job.run.learner.checkpoint_every == 0 or curriculum.finished or stop:
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
        self._opened = open_policy(checkpoint)
        nn.Module.to(self._opened.module, group.device)
        self.update = build_update(job, self._opened, self.curriculum.total, group, self.metrics)
        begun = self._resume(checkpoint) if self.position.in_stage else RolloutState()
        if group.rank == 0:
            source.load_state(begun)
        self.reporter = Reporter(group, recorder, self.settings.stage, self.position, checkpoint)
        self.known = words_of_values(training_values(job.directory))
        """Values of the training data, as the metrics of recall take them."""

    def _resume(self, checkpoint: Checkpoint) -> RolloutState:
        """Take over what the stage saved; the state of the rollout is the source's."""
        state = TrainingState.of(checkpoint)
        self.update.resume_phases(state.phases, state.done)  # first: frozen parts have no moments
        with checkpoint.folder() as folder:
            resume_training(folder, self.update.trainers, self.update.modules)
        held = state.rl
        assert held is not None, "a checkpoint inside the stage has what the stage saved"
        self.update.kl.coefficient = held.kl_coefficient
        self.update.algorithm.load_state(held.algorithm)
        self.curriculum.load(held.curriculum)
        return held.rollout

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase and says that the rank is in it."""
        self.reporter.phase(name)
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.metrics.record("time/phase_seconds", seconds, phase=name, role="learner")

    def save(self, done: int) -> None:
        """A checkpoint after `done` iterations; every rank calls it."""
        update = self.update
        with self.phase("checkpoint"):
            state = self.reporter.state(done)
            if self.group.rank == 0:
                algorithm, rollout = update.algorithm.state(), self.source.state()
                coefficient = update.kl.coefficient
                rl = RLState(coefficient, algorithm, self.curriculum.state(), rollout)
                save_training(
                    self.job.directory,
                    self.position.base + done,
                    self._opened.module,
                    self._opened.tokenizer.save,
                    replace(state, rl=rl, phases=update.unfreezing.begun),
                    self.job.run.learner.keep_checkpoints,
                    update.trainers,
                    update.modules,
                )
            self.reporter.saved()


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
    policy = opened.trainable(settings, group)
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


def publish(update: Update, source: EpisodeSource, version: int, metrics: Metrics) -> None:
    """Hand the policy's weights to the rollout workers."""
    started = time.perf_counter()
    weights = pack(update.policy.module.state_dict(), version)
    source.publish(weights)
    metrics.record("sync/seconds", time.perf_counter() - started)
    metrics.record("sync/bytes", sum(array.nbytes for array in weights.tensors.values()))
    metrics.record("sync/version", version)


def plan_of(step: CurriculumStep, episodes: int) -> Plan:
    return Plan(
        step.name,
        step.max_steps,
        episodes,
        step.strategy,
        step.reset_probability,
        step.teacher_forcing,
    )
