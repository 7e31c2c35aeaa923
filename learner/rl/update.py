"""PPO on memory: token-level ratios, one advantage per interaction, gradients through the writes
that made the memory.

Every pass starts from the memory the episode really started from and rebuilds all later memories
with the current weights, so before the first update the ratio is 1 on every token, and afterwards
encoder and memory attention are trained by what later answers earned.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from common.config.stages import MRL
from common.data.padding import pad
from common.models.layers.feed_forward import Routing
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from common.models.reactive.unroll import answer_logits, collate, memories_and_before
from common.seeding import derive
from common.telemetry.metrics import Metrics
from learner.parallel.group import Group
from learner.parallel.optimizer import LossTerm, Trainer, combine
from learner.rl.experience import Experience, answered_rows, conversation, critic_rows
from learner.rl.kl import AdaptiveKL, kl_estimate
from learner.rl.load_balance import no_router_terms, router_terms
from learner.rl.losses import (
    memory_change_penalty,
    policy_loss,
    token_entropy,
    token_log_probs,
    value_loss,
)


def ppo_update(
    experience: Experience,
    places: list[int],
    episodes: int,
    model: ReactiveTransformer,
    critic: Critic,
    policy_trainer: Trainer,
    critic_trainer: Trainer,
    kl: AdaptiveKL,
    settings: MRL,
    temperature: float,
    seed: int,
    iteration: int,
    group: Group,
    metrics: Metrics,
    reward_width: float = 1.0,
) -> None:
    """All epochs and minibatches over one batch of episodes.

    places: place of each of this rank's episodes in the whole batch of `episodes`; minibatches are
    drawn over the whole batch, so that two ranks step on what one rank would step on. reward_width:
    of the range that rewards lie in; values are clipped to a share of it.
    """
    first, learns = True, iteration >= settings.ppo.critic_warmup
    for epoch in range(settings.ppo.epochs):
        for chosen in minibatches(
            places,
            episodes,
            settings.ppo.minibatches,
            derive(seed, "minibatches", iteration, epoch),
        ):
            if learns:
                terms = policy_terms(
                    experience,
                    chosen,
                    model,
                    kl.coefficient,
                    settings,
                    temperature,
                    group,
                    metrics,
                    first,
                )
                norm = step(
                    policy_trainer,
                    terms,
                    iteration,
                    group,
                    metrics,
                    "train/gradient_norm",
                    "train/learning_rate",
                )
                metrics.record("train/gradient_clipped", norm > settings.optimizer.max_grad_norm)
                first = False
            terms = critic_terms(experience, chosen, critic, settings, group, metrics, reward_width)
            step(
                critic_trainer,
                terms,
                iteration,
                group,
                metrics,
                "ppo/gradient_norm_critic",
                "train/learning_rate_critic",
            )
            if group.rank == 0:
                metrics.record("train/steps", 1)


def step(
    trainer: Trainer,
    terms: list[LossTerm],
    iteration: int,
    group: Group,
    metrics: Metrics,
    norm_name: str,
    rate_name: str,
) -> float:
    """One optimiser step on the terms, recorded; the gradient's norm before clipping."""
    loss, sums = combine(terms, group)
    norm, rate = trainer.update(loss, iteration)
    for name, (total, count) in sums.items():
        if count:
            metrics.record(name, total / count, weight=count)
    metrics.record(norm_name, norm)
    metrics.record(rate_name, rate)
    return norm


def minibatches(places: list[int], episodes: int, count: int, seed: int) -> Iterator[list[int]]:
    """Indices into `places` for each of `count` minibatches of a shuffle of the whole batch; may be
    empty on a rank."""
    order = np.random.default_rng(seed).permutation(episodes).tolist()
    local = {place: i for i, place in enumerate(places)}
    for start in range(count):
        yield sorted(local[place] for place in order[start::count] if place in local)


def policy_terms(
    experience: Experience,
    chosen: list[int],
    model: ReactiveTransformer,
    kl_coefficient: float,
    settings: MRL,
    temperature: float,
    group: Group,
    metrics: Metrics,
    first: bool,
) -> list[LossTerm]:
    """The policy's losses on some of this rank's episodes, as sums. An empty choice gives zeros, so
    that collectives stay in step."""
    ppo = settings.ppo
    if not chosen:
        nothing = torch.stack([p.sum() for p in model.parameters()]).sum() * 0.0
        empty = [
            LossTerm(name, nothing, 0.0)
            for name in (
                "ppo/loss_policy",
                "ppo/loss_kl",
                "objective/entropy",
                "ppo/loss_memory_change",
            )
        ]
        measured = [
            LossTerm(name, nothing.detach(), 0.0, 0.0)
            for name in ("ppo/clip_fraction", "ppo/approx_kl", "ppo/approx_kl_k3", "memory/change")
        ]
        return [*empty, *measured, *no_router_terms(model, settings.router_loss, group)]
    batch = collate([conversation(experience.episodes[i]) for i in chosen]).to(group.device)
    initial = experience.initial[chosen]
    if model.config.initial_memory == "learned":
        # The learned start is the same tensor for all; episodes that carried a memory over keep
        # theirs.
        fresh = torch.tensor(
            [experience.episodes[i].initial_memory is None for i in chosen], device=group.device
        )[:, None, None, None]
        initial = torch.where(fresh, model.initial_memory([0] * len(chosen)), initial)
    memory, before = memories_and_before(
        model, batch, initial, ppo.bptt_turns, not settings.freeze_encoder
    )

    start = batch.active[0]
    mask = batch.answer_mask()[start:]
    routings: list[Routing] = []
    logits, targets = answer_logits(model, batch.tokens[start:], memory[start:], mask, routings)
    log_probs, entropy = (
        token_log_probs(logits, targets, temperature),
        token_entropy(logits, temperature),
    )
    rows = [(chosen[i], turn) for i, turn in answered_rows(batch)]
    lengths = mask.sum(1)
    old = torch.cat(
        [
            torch.tensor(experience.episodes[i].answered[k].log_probs, dtype=torch.float32)
            for i, k in rows
        ]
    ).to(group.device)
    reference = torch.cat([experience.reference[i][k] for i, k in rows])
    episode_index, turn_index = (
        torch.tensor(x, device=group.device) for x in zip(*rows, strict=True)
    )
    scored = torch.repeat_interleave(experience.scored[episode_index, turn_index], lengths)
    advantages = torch.repeat_interleave(experience.advantages[episode_index, turn_index], lengths)

    loss = policy_loss(log_probs, old, advantages, scored, ppo.clip)
    if first:
        metrics.record("ppo/ratio_max_deviation_first", float(loss.max_ratio_deviation))
        metrics.record("ppo/log_prob_max_difference", float((log_probs.detach() - old).abs().max()))
    distance = torch.where(scored, kl_estimate(log_probs, reference, ppo.kl_estimator), 0.0)
    turns = batch.turns[start:].to(group.device) - 1
    change = (memory[start:] - before).detach().square().mean(dim=(1, 2, 3)).sum()
    penalty = memory_change_penalty(
        before, memory[start:], turns, torch.ones_like(turns, dtype=torch.bool)
    )
    real = (
        torch.arange(1, batch.tokens.shape[1], device=group.device)
        <= batch.length[start:, None] - 1
    )
    tokens = float(loss.tokens)
    metrics.record("train/tokens", int(batch.length[start:].sum()))
    return [
        LossTerm("ppo/loss_policy", loss.loss, tokens),
        LossTerm("ppo/loss_kl", distance.sum(), tokens, kl_coefficient),
        LossTerm(
            "objective/entropy", torch.where(scored, entropy, 0.0).sum(), tokens, -ppo.entropy
        ),
        LossTerm("ppo/loss_memory_change", penalty, turns.numel(), ppo.memory_change),
        LossTerm("ppo/clip_fraction", loss.clipped.float(), tokens, 0.0),
        LossTerm("ppo/approx_kl", loss.approx_kl, tokens, 0.0),
        LossTerm("ppo/approx_kl_k3", loss.approx_kl_k3, tokens, 0.0),
        LossTerm("memory/change", change, turns.numel(), 0.0),
        *router_terms(routings, real, settings.router_loss, group),
    ]


def critic_terms(
    experience: Experience,
    chosen: list[int],
    critic: Critic,
    settings: MRL,
    group: Group,
    metrics: Metrics,
    reward_width: float = 1.0,
) -> list[LossTerm]:
    """The critic's loss on some of this rank's episodes, as a sum."""
    if not chosen:
        nothing = torch.stack([p.sum() for p in critic.parameters()]).sum() * 0.0
        return [
            LossTerm("ppo/loss_value", nothing, 0.0),
            LossTerm("ppo/value_clip_fraction", nothing.detach(), 0.0, 0.0),
        ]
    episodes = [experience.episodes[i] for i in chosen]
    index = [
        (i, k)
        for i, episode in zip(chosen, episodes, strict=True)
        for k in range(len(episode.answered))
    ]
    i, k = (torch.tensor(x, device=group.device) for x in zip(*index, strict=True))
    tokens, mask = pad(critic_rows(episodes))
    values = critic(tokens.to(group.device), mask.to(group.device))
    clip = settings.ppo.value_clip * reward_width
    loss = value_loss(
        values, experience.values[i, k], experience.returns[i, k], experience.scored[i, k], clip
    )
    turns = float(loss.turns)
    if turns:
        scored = experience.scored[i, k]
        metrics.record("ppo/values", float(values.detach()[scored].mean()), weight=turns)
        metrics.record("ppo/returns", float(experience.returns[i, k][scored].mean()), weight=turns)
    return [
        LossTerm("ppo/loss_value", loss.loss, turns),
        LossTerm("ppo/value_clip_fraction", loss.clipped.float(), turns, 0.0),
    ]
