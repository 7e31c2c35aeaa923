"""One update of a policy by a batch of episodes, whatever the algorithm.

    evaluate ──► credit (algorithm) ──► epochs × minibatches: terms ──► step

`Update` holds everything that this takes. All ranks call it together, each with its share of the
batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from common.config.mrl import MRL
from common.config.stages import Optimizer
from common.config.unfreeze import Phase
from common.episode import Episode
from common.seeding import derive
from common.telemetry.metrics import Metrics
from learner.checkpointing import REFERENCE
from learner.metrics import record_parts, record_passed_over, record_step
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm, Trainer, combine, learning_rate_factor
from learner.policies.protocol import TokenBatch, TrainablePolicy, ValueFunction
from learner.rl.advantages import generalized_advantages, mean_and_variance
from learner.rl.algorithms.algorithm import Algorithm, whitened_experience
from learner.rl.experience import Experience, gather_experience
from learner.rl.kl import AdaptiveKL
from learner.rl.losses import MAX_LOG_RATIO
from learner.rl.mismatch import corrected
from learner.rl.rewards import shaped_rewards
from learner.unfreezing import Unfreezing


class Update:
    """steps: iterations of the stage, over which the learning rate falls. temperature: that answers
    are sampled at. seed: of the draws of minibatches.

    Builds the reference and the critic where the algorithm needs them. A critic draws from torch's
    random state, which must be the same on all ranks.
    """

    def __init__(
        self,
        policy: TrainablePolicy,
        algorithm: Algorithm,
        settings: MRL,
        steps: int,
        temperature: float,
        seed: int,
        group: Group,
        metrics: Metrics,
    ):
        self.policy, self.algorithm = policy, algorithm
        self.settings = settings.algorithm_settings
        self.temperature, self.seed, self.group, self.metrics = temperature, seed, group, metrics
        self.kl = AdaptiveKL(self.settings.kl, self.settings.kl_target, self.settings.kl_horizon)
        needs = algorithm.needs
        self.reference = policy.frozen_copy() if needs.reference else None
        self.rate = 1.0
        """Factor of the policy's learning rate."""
        self.unfreezing = Unfreezing(settings.unfreeze, policy.part_of)
        self.policy_trainer = Trainer(
            {"model": policy.module}, settings.optimizer, steps, group, self._scale
        )
        self.critic: ValueFunction | None = None
        self.critic_trainer: Trainer | None = None
        if needs.critic_learning_rate is not None:
            self.critic = policy.value_function(needs.critic, needs.values_of_tokens)
            rates = Optimizer(
                learning_rate=needs.critic_learning_rate, warmup_fraction=0.0, final_fraction=1.0
            )
            self.critic_trainer = Trainer({"critic": self.critic.module}, rates, steps, group)

    def _scale(self, name: str) -> float:
        """Share of its peak rate that a parameter of the policy learns at, by its name there."""
        return self.policy.trains(name.removeprefix("model.")) * self.unfreezing.scale(name)

    @property
    def trainers(self) -> dict[str, Trainer]:
        """For a checkpoint, by name."""
        critic = {} if self.critic_trainer is None else {"critic": self.critic_trainer}
        return {"policy": self.policy_trainer, **critic}

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Modules that a checkpoint holds beside the policy, by name."""
        beside = {REFERENCE: self.reference, "critic": self.critic}
        return {name: part.module for name, part in beside.items() if part is not None}

    def evaluate(self, episodes: list[Episode], places: list[int]) -> Experience:
        """The experience of this rank's episodes, credited. places: position of each in the whole
        batch."""
        self.policy.observe(episodes, self.metrics)
        correct, own = self.settings.mismatch.correct != "none", None
        with self.group.precision.autocast():
            experience = gather_experience(
                episodes,
                self.reference,
                self.critic,
                self.temperature,
                self.group.device,
                self.algorithm.needs.values_of_tokens,
            )
            if correct:
                own = self.policy.log_probs(episodes, self.temperature)
        with torch.no_grad():
            if own is not None:
                experience = corrected(experience, own, self.settings.mismatch, self.group)
            experience = self._shaped(experience, self.kl.coefficient)
            credited = self.algorithm.credit(experience, places, self.group)
        return replace(credited, figures=experience.figures | credited.figures)

    def _shaped(self, experience: Experience, kl_coefficient: float) -> Experience:
        return shaped_rewards(
            experience, self.settings, kl_coefficient, self.policy.ended, self.group
        )

    @torch.no_grad()
    def begin_critic(self, episodes: list[Episode]) -> None:
        """Let a new critic begin with the mean return of a batch, over all ranks. episodes: this
        rank's.

        From 0 it would need many steps to come near, and until then its error would be most of what
        advantages hold.
        """
        if self.critic is None:
            return
        batch = gather_experience(episodes, None, None, self.temperature, self.group.device)
        # The policy is still the reference: there is no KL to take off.
        batch = self._shaped(batch, 0.0)
        discounts = batch.discounts(self.settings.discount)
        returns, _ = generalized_advantages(
            batch.rewards, batch.values, batch.bootstrap, discounts, 1.0, batch.scored
        )
        _, mean, _ = mean_and_variance(returns, batch.scored, reduce=self.group.sum)
        self.critic.begin(float(mean))

    def unfreeze(self, done: int, reward: float | None) -> tuple[Phase, ...]:
        """Let parts begin to learn that are due after `done` iterations; returns their phases.
        reward: mean of the last of them over all ranks; None where none was scored."""
        begun = self.unfreezing.advance(done, reward)
        if begun:
            self.policy_trainer.select()
        return begun

    def resume_phases(self, begun: int, done: int) -> None:
        """Train what was trained after `done` iterations, when `begun` phases had begun."""
        self.unfreezing.load(begun, done)
        self.policy_trainer.select()

    def run(self, experience: Experience, places: list[int], total: int, iteration: int) -> None:
        """All epochs and minibatches over one batch.

        Minibatches are drawn over the whole batch of `total` episodes, so that two ranks step on
        what one rank would step on.
        """
        needs = self.algorithm.needs
        first, learns = True, iteration >= needs.critic_warmup
        for epoch in range(self.settings.epochs):
            seed = derive(self.seed, "minibatches", iteration, epoch)
            for chosen in minibatches(places, total, self.settings.minibatches, seed):
                part = self._with_present_memories(experience.select(chosen))
                if learns and self._has_signal(part):
                    learns = self.step_policy(part, iteration, first)
                    first = False
                if self.critic is not None:
                    self.step_critic(part, iteration)
                if self.group.rank == 0:
                    self.metrics.record("train/steps", 1)

    def step_policy(self, part: Experience, iteration: int, first: bool) -> bool:
        """One step of the policy on the experience of some episodes, of none on some ranks. No step
        where ratios have exploded; False, and no step, where the policy has moved too far since it
        sampled them."""
        settings = self.settings
        if settings.whiten and settings.whiten_over == "minibatch":
            part = whitened_experience(part, settings, self.group)
        terms = self.policy_terms(part, first)
        if self._has_moved_too_far(terms):
            return False
        if self._has_exploded(terms):
            return True
        trainer = self.policy_trainer
        factor = self.rate * learning_rate_factor(trainer.settings, iteration, trainer.steps)
        norm, rate = self._step(trainer, terms, iteration, factor)
        record_step(trainer, norm, rate, self.metrics)
        record_parts(self.policy_trainer, self.unfreezing, self.metrics)
        return True

    def _has_moved_too_far(self, terms: list[LossTerm]) -> bool:
        limit = self.settings.stop_kl
        return limit is not None and self._found(
            "ppo/passes_stopped", self._exceeds(terms, "ppo/approx_kl_k3", limit)
        )

    def _has_exploded(self, terms: list[LossTerm]) -> bool:
        limit = self.settings.skip_log_ratio
        return limit is not None and self._found(
            "ppo/minibatches_skipped", self._exceeds(terms, "ppo/log_ratio", limit)
        )

    def _has_signal(self, part: Experience) -> bool:
        """Whether an advantage of the minibatch, on any rank, is not 0; True where that is not
        asked for."""
        if not self.settings.skip_without_signal:
            return True
        some = self.group.sum(part.advantages.count_nonzero().double()) > 0
        return not self._found("objective/minibatches_without_signal", not some)

    def _exceeds(self, terms: list[LossTerm], name: str, limit: float) -> bool:
        """Whether the mean of a term over all ranks is above a limit."""
        (term,) = (term for term in terms if term.name == name)
        total, count = self.group.sum(
            torch.tensor(
                [float(term.sum), float(term.count)], dtype=torch.float64, device=self.group.device
            )
        ).tolist()
        return bool(total > limit * max(count, 1.0))

    def _found(self, name: str, holds: bool) -> bool:
        """`holds`, which all ranks found of a minibatch, after it is noted as a metric."""
        if self.group.rank == 0:
            self.metrics.record(name, holds)
        return holds

    def policy_terms(self, part: Experience, first: bool = False) -> list[LossTerm]:
        """The losses of the policy. first: whether no step was taken since sampling."""
        queries = self.algorithm.needs.queries
        with self.group.precision.autocast():
            batch = self.policy.evaluate(part.episodes, self.temperature, queries)
        self.metrics.record("train/tokens", batch.read)
        if first and part.episodes:
            self._record_parity(batch, part)
        weight = self.kl.coefficient if self.settings.kl_in == "loss" else 0.0
        return [*self.algorithm.terms(batch, part, weight), *batch.terms, *self._value_terms(part)]

    def _with_present_memories(self, part: Experience) -> Experience:
        """The experience with memories of the present weights where the policy learns from the
        critic's losses: both are stepped from these, whichever comes first."""
        if self.critic is None or not self.critic.loss_in_policy:
            return part
        with self.group.precision.autocast():
            return replace(part, memories=self.critic.memories(part.episodes))

    def _value_terms(self, part: Experience) -> list[LossTerm]:
        """The critic's losses as part of the policy's, where it learns from them."""
        if self.critic is None or not self.critic.loss_in_policy:
            return []
        with self.group.precision.autocast():
            values = self.critic.evaluate(part.episodes, part.memories)
        return [
            LossTerm("critic/loss_in_policy", each.sum, each.count, self.critic.loss_in_policy)
            for each in self.algorithm.critic_terms(values, part)
            if each.coefficient
        ]

    def step_critic(self, part: Experience, iteration: int) -> None:
        """One step of the critic, by an optimiser of its own."""
        assert self.critic_trainer is not None
        norm, rate = self._step(self.critic_trainer, self.critic_terms(part), iteration)
        if self.critic_trainer.passed_over:
            record_passed_over(self.critic_trainer, self.metrics)
        else:
            self.metrics.record("ppo/gradient_norm_critic", norm)
        self.metrics.record("train/learning_rate_critic", rate)

    def critic_terms(self, part: Experience) -> list[LossTerm]:
        """The losses of the critic."""
        assert self.critic is not None
        memories = part.memories
        if memories is not None:
            memories = [each.detach() for each in memories]
        with self.group.precision.autocast():
            values = self.critic.evaluate(part.episodes, memories)
        return self.algorithm.critic_terms(values, part)

    def _step(
        self,
        trainer: Trainer,
        terms: list[LossTerm],
        iteration: int,
        factor: float | None = None,
    ) -> tuple[float, float]:
        """Gradient norm before clipping, and learning rate."""
        loss, sums = combine(terms, self.group)
        norm, rate = trainer.update([loss], iteration, factor)
        for name, (total, count) in sums.items():
            if count:
                self.metrics.record(name, total / count, weight=count)
        return norm, rate

    def _record_parity(self, batch: TokenBatch, part: Experience) -> None:
        """Before the first step, learner and rollout workers must agree on every log-prob."""
        recorded = [[action.log_probs for action in one.actions] for one in part.episodes]
        difference = batch.log_probs.detach() - batch.flat(recorded)
        self.metrics.record("ppo/log_prob_max_difference", float(difference.abs().max()))
        held = torch.where(batch.spread(part.scored), difference, 0.0)
        ratio = held.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        self.metrics.record("ppo/ratio_max_deviation_first", float((ratio - 1).abs().max()))
        answers = batch.spread(part.scored)
        tokens = float(answers.sum())
        if tokens:
            self.metrics.record(
                "mismatch/log_prob_difference", float(held.abs().sum()) / tokens, tokens
            )
            self.metrics.record("mismatch/kl", float((ratio - 1 - held).sum()) / tokens, tokens)


def minibatches(places: list[int], episodes: int, count: int, seed: int) -> Iterator[list[int]]:
    """Indices into `places` for each of `count` minibatches of a shuffle of the whole batch; may be
    empty on a rank."""
    order = np.random.default_rng(seed).permutation(episodes).tolist()
    local = {place: i for i, place in enumerate(places)}
    for start in range(count):
        yield sorted(local[place] for place in order[start::count] if place in local)
