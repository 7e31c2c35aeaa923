"""Stage 5, Memory Reinforcement Learning: publish weights, have conversations played and scored,
learn from them; synchronous.

    publish ──► collect ──► evaluate (reference, critic, advantages) ──► update ──► checkpoint

One iteration is one batch of episodes, all made with the weights that are then updated. Every rank
runs this loop on its share.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from common.config.run import Run
from common.config.stages import MRL, CurriculumStep, Optimizer
from common.failures import Drained, InputError, Unavailable
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from common.seeding import derive
from common.storage.checkpoint import Checkpoint, latest_checkpoint
from common.telemetry.metrics import Metrics
from common.weights import pack
from learner.checkpointing import checkpoint_model, resume_training, save_training
from learner.curriculum import Curriculum
from learner.episode_source import ConductorSource, EpisodeSource, Shard
from learner.evaluation.measure import training_values
from learner.metrics import record_episodes, record_kl, record_position
from learner.parallel.group import Group, Job
from learner.parallel.optimizer import Trainer
from learner.recorder import Recorder, RecorderClient
from learner.reporter import Position, Reporter
from learner.rl.experience import gather_experience
from learner.rl.kl import AdaptiveKL
from learner.rl.update import ppo_update
from reward_service.components.recall import words_of_values
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
    run, settings = job.run, job.run.stages[job.stage]
    assert isinstance(settings, MRL)
    require_learnable(run)
    checkpoint = latest_checkpoint(job.directory)
    assert checkpoint is not None, "the pipeline writes a checkpoint before the first stage"
    position = Position.of(checkpoint, job.stage)
    curriculum = Curriculum(settings.curriculum)
    learner = Learner(group, job, settings, checkpoint, position, curriculum)
    if group.rank == 0:
        source.load_state(checkpoint.state["conductor"] if position.in_stage else None)
    reporter = Reporter(group, recorder, settings.stage, curriculum.total, position, checkpoint)
    temperature, metrics = run.rollout.sampling.temperature, Metrics()
    known = words_of_values(training_values(job.directory))

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        reporter.phase(name)
        started = time.perf_counter()
        yield
        metrics.record(
            "time/phase_seconds", time.perf_counter() - started, phase=name, role="learner"
        )

    def save(done: int) -> None:
        with phase("checkpoint"):
            more = {"kl": learner.kl.state_dict(), "curriculum": curriculum.state_dict()}
            state = reporter.state(
                done, **more, conductor=source.state() if group.rank == 0 else {}
            )
            if group.rank == 0:
                learner.save(position.base + done, state)
            reporter.saved()

    saved = position.in_stage
    for iteration in range(position.in_stage, curriculum.total):
        step = curriculum.step
        with phase("publish"):
            if group.rank == 0:
                learner.publish(source, iteration, metrics)
            reporter.barrier()  # nobody asks for episodes of weights that are not out yet
        with phase("collect"):
            batch, away = collect(source, iteration, plan_of(step, settings.episodes), group)
        if batch is None:
            if saved < iteration:
                save(iteration)
            if away is not None:
                recorder.fail(Drained(f"{away}; stopped at step {position.base + iteration}"), "")
            return
        with phase("evaluate"):
            experience = gather_experience(
                batch.episodes,
                learner.model,
                learner.reference,
                learner.critic,
                settings.ppo,
                temperature,
                group,
            )
            record_episodes(experience, known, metrics)
        with phase("update"):
            learner.kl.update(record_kl(experience, group, metrics), batch.total)
            seed = derive(run.seed, "mrl", job.stage)
            ppo_update(
                experience, batch.places, batch.total, learner.model, learner.critic,
                learner.policy_trainer, learner.critic_trainer,
                learner.kl, settings, temperature, seed, iteration, group, metrics,
                run.rewards.width(),
            )  # fmt: skip
        if group.rank == 0:
            source.trained(iteration, iteration + 1)
            record_position(learner.kl, curriculum, metrics)
            metrics.merge(source.metrics())
        curriculum.advance()

        done = iteration + 1
        reporter.record(done, metrics)
        stop = reporter.stop_requested()
        if done % run.learner.checkpoint_every == 0 or curriculum.finished or stop:
            save(done)
            saved = done
        if stop:
            return


def collect(
    source: EpisodeSource, iteration: int, plan: Plan, group: Group
) -> tuple[Shard | None, Unavailable | None]:
    """This rank's episodes, or None on all ranks where one of them was told that episodes cannot be
    scored for now; and what it was told.

    Ranks ask one after the other: an endpoint may be away for one of them, and back before another
    asks.
    """
    shard, away = None, None
    try:
        shard = source.collect(iteration, iteration, plan, group.rank, group.size)
    except Unavailable as told:
        away = told
    anywhere = group.max(torch.tensor(float(away is not None), device=group.device)) > 0
    return (None if anywhere else shard), away


class Learner:
    """What a rank holds: the policy, the reference it must not stray from, the critic, and their
    optimisers."""

    def __init__(
        self,
        group: Group,
        job: Job,
        settings: MRL,
        checkpoint: Checkpoint,
        position: Position,
        curriculum: Curriculum,
    ):
        self.job, run = job, job.run
        self.model, self.tokenizer = checkpoint_model(checkpoint)
        self.reference: ReactiveTransformer = copy.deepcopy(self.model).requires_grad_(False)
        torch.manual_seed(
            derive(run.seed, "critic", job.stage)
        )  # ranks must begin with the same one
        self.critic = Critic.from_policy(self.model)
        for module in (self.model, self.reference, self.critic):
            nn.Module.to(module, group.device)
        steps = curriculum.total
        rates = Optimizer(
            learning_rate=settings.ppo.critic_learning_rate, warmup_fraction=0.0, final_fraction=1.0
        )
        self.policy_trainer = Trainer({"model": self.model}, settings.optimizer, steps, group,
        lambda name: not (
            settings.freeze_encoder and name.startswith("model.encoder.")
        ))  # fmt: skip
        self.critic_trainer = Trainer({"critic": self.critic}, rates, steps, group)
        self.kl = AdaptiveKL(settings.ppo.kl, settings.ppo.kl_target, settings.ppo.kl_horizon)
        self.keep = run.learner.keep_checkpoints
        if position.in_stage:
            with checkpoint.folder() as folder:
                resume_training(
                    folder, self.trainers, {"reference": self.reference, "critic": self.critic}
                )
            self.kl.load_state_dict(checkpoint.state["kl"])
            curriculum.load_state_dict(checkpoint.state["curriculum"])

    @property
    def trainers(self) -> dict[str, Trainer]:
        return {"policy": self.policy_trainer, "critic": self.critic_trainer}

    def publish(self, source: EpisodeSource, version: int, metrics: Metrics) -> None:
        started = time.perf_counter()
        weights = pack(self.model.state_dict(), version)
        source.publish(weights)
        metrics.record("sync/seconds", time.perf_counter() - started)
        metrics.record("sync/bytes", sum(array.nbytes for array in weights.tensors.values()))
        metrics.record("sync/version", version)

    def save(self, step: int, state: dict[str, Any]) -> None:
        extras = {"reference": self.reference, "critic": self.critic}
        save_training(
            self.job.directory,
            step,
            self.model,
            self.tokenizer.save,
            state,
            self.keep,
            self.trainers,
            extras,
        )


def plan_of(step: CurriculumStep, episodes: int) -> Plan:
    return Plan(
        step.name,
        step.max_steps,
        episodes,
        step.strategy,
        step.reset_probability,
        step.teacher_forcing,
    )


def require_learnable(run: Run) -> None:
    """MRL learns from the very distribution it samples: a filter would make the recorded log-probs
    those of another one."""
    sampling = run.rollout.sampling
    if sampling.temperature == 0:
        raise InputError(
            "rollout.sampling.temperature",
            "is 0: greedy answers explore nothing, and have no distribution to learn from",
        )
    for key, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
        if getattr(sampling, key) != off:
            raise InputError(
                f"rollout.sampling.{key}",
                f"must be {off} in MRL, so that what is learnt from is what was sampled",
            )
