"""PPO on memory computed plainly: loops over episodes, turns and tokens, in float64, no batches.

The reference for tests of the update. It calls the models (one sequence at a time) and shares
nothing else with the learner, so a wrong sign, mask or count there cannot also be in here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.config.mrl import MRL
from common.episode import Episode, Turn
from common.models.layers.feed_forward import Routing
from common.models.reactive.critic import Critic
from common.models.reactive.model import ReactiveTransformer
from tests.plain_memory import distributions, memory_around_write, router_loss


@dataclass(frozen=True)
class Case:
    """Everything that one update depends on. Nothing in it is changed by either computation."""

    episodes: list[Episode]
    settings: MRL
    temperature: float
    reward_width: float
    old_policy: ReactiveTransformer
    """The weights that credit was given with; `policy` and `critic` are those being updated."""
    old_critic: Critic
    policy: ReactiveTransformer
    critic: Critic
    reference: ReactiveTransformer


@dataclass(frozen=True)
class Outcome:
    terms: dict[str, float]
    """Means and other figures, by metric name."""
    gradients: dict[str, Tensor]
    """Of the whole loss, by parameter name; zeros where a parameter has none."""


@dataclass
class Answer:
    """One answered turn with all that its losses need."""

    turn: Turn
    number: int
    """0 for the first answered turn."""
    critic_row: list[int]
    critic_memory: Tensor | None
    """What the critic reads of memory: what the weights that sampled made of the turns before."""
    old_value: float
    reference: list[float]
    advantage: float = 0.0
    """0 where the turn has no score, which no loss then looks at."""
    target: float = 0.0


def plain_update(case: Case) -> Outcome:
    policy, critic = (copy.deepcopy(m).double() for m in (case.policy, case.critic))
    for module in (policy, critic):
        module.zero_grad()
        module.requires_grad_(True)
    answers = [answers_of(case, episode) for episode in case.episodes]
    terms = credit(case, answers)
    terms |= measure_kl(case, answers)
    loss, figures = policy_objective(case, policy, answers, terms["ppo/kl_coefficient"])
    value_loss, value_figures = critic_objective(case, critic, answers)
    (loss + value_loss).backward()
    gradients = {
        f"{prefix}.{name}": torch.zeros_like(p) if p.grad is None else p.grad
        for prefix, module in (("policy", policy), ("critic", critic))
        for name, p in module.named_parameters()
    }
    for name, gradient in gradients.items():
        if name.startswith("policy.") and not learns(case, name):
            gradient.zero_()
    return Outcome(terms | figures | value_figures, gradients)


def learns(case: Case, name: str) -> bool:
    """Whether a parameter of the policy is trained in the first iteration. Parts are told by the
    modules that they are, cross-attention and its norms by their names."""
    phases = case.settings.unfreeze
    module = name.split(".")[1]
    if "cross" in name or (module == "decoder" and "memory" in name):
        module = "memory_cross_attention"
    part = {"first_memory": "memory_attention"}.get(module, module)
    return not phases or part in phases[0].train


# --- what memory is written with, and what is then said -------------------------------------------


def written(turn: Turn) -> list[int]:
    said = turn.reference_ids if turn.teacher_forced else turn.answer_ids
    return list(turn.query_ids) + list(said)


def start(model: ReactiveTransformer, episode: Episode) -> Tensor:
    """[1, layers, slots, width]."""
    own = model.initial_memory([episode.seed])
    if episode.initial_memory is None:
        return own
    numbers = np.frombuffer(episode.initial_memory.data, dtype=np.float32).astype(np.float64)
    return torch.from_numpy(numbers).reshape(own.shape)


def memory_for(
    model: ReactiveTransformer, episode: Episode, turn: int, depth: int | str
) -> tuple[Tensor, Tensor]:
    """Memory before and after the last write that `turn` reads."""
    earlier = [written(before) for before in episode.turns[:turn]]
    return memory_around_write(model, start(model, episode), earlier, depth)


@torch.no_grad()
def answer_log_probs(
    model: ReactiveTransformer, episode: Episode, turn: int, temperature: float
) -> list[float]:
    _, memory = memory_for(model, episode, turn, "all")
    query, answer = episode.turns[turn].query_ids, episode.turns[turn].answer_ids
    found = distributions(model, query, answer, memory, temperature)
    return [float(log_probs[token]) for log_probs, token in zip(found, answer, strict=True)]


# --- credit ---------------------------------------------------------------------------------------


def answers_of(case: Case, episode: Episode) -> list[Answer]:
    old_critic, reference = (copy.deepcopy(m).double() for m in (case.old_critic, case.reference))
    answers = []
    for index in range(1, len(episode.turns)):
        row = written(episode.turns[index - 1]) + list(episode.turns[index].query_ids)
        memory = critic_memory(case, episode, index)
        answers.append(
            Answer(
                episode.turns[index],
                index - 1,
                row,
                memory,
                float(value_of(old_critic, row, memory).detach()),
                answer_log_probs(reference, episode, index, case.temperature),
            )
        )
    return answers


@torch.no_grad()
def value_beyond(case: Case, episode: Episode) -> float:
    """Of the query that would have come next, where the episode was cut off."""
    if not episode.next_query_ids:
        return 0.0
    row = written(episode.turns[-1]) + list(episode.next_query_ids)
    memory = critic_memory(case, episode, len(episode.turns))
    return float(value_of(copy.deepcopy(case.old_critic).double(), row, memory))


@torch.no_grad()
def critic_memory(case: Case, episode: Episode, turn: int) -> Tensor | None:
    """Memory that the query of `turn` is read with; None for a critic that reads none."""
    if not case.settings.ppo.critic.memory:
        return None
    return memory_for(copy.deepcopy(case.old_policy).double(), episode, turn, "all")[1]


def value_of(critic: Critic, row: Sequence[int], memory: Tensor | None) -> Tensor:
    tokens = torch.tensor([row])
    return critic(tokens, torch.ones_like(tokens, dtype=torch.bool), memory)[0]


def credit(case: Case, answers: list[list[Answer]]) -> dict[str, float]:
    """Fill in advantages and targets. Turns without a score are left out, as if never played."""
    ppo = case.settings.ppo
    for told, episode in zip(case.episodes, answers, strict=True):
        beyond = value_beyond(case, told)
        scored = [answer for answer in episode if answer.turn.reward is not None]
        surprises = []
        for i, answer in enumerate(scored):
            after = scored[i + 1].old_value if i + 1 < len(scored) else beyond
            surprises.append(float(answer.turn.reward or 0.0) + ppo.discount * after)
            surprises[i] -= answer.old_value
        for i, answer in enumerate(scored):
            for ahead in range(len(scored) - i):
                answer.advantage += (ppo.discount * ppo.gae_lambda) ** ahead * surprises[i + ahead]
            answer.target = answer.advantage + answer.old_value
    scored = [a for episode in answers for a in episode if a.turn.reward is not None]
    targets = [answer.target for answer in scored]
    errors = [(answer.old_value - answer.target) ** 2 for answer in scored]
    mean, std = mean_and_std([answer.advantage for answer in scored])
    figures = {
        "objective/advantage": mean,
        "objective/advantage_std": std,
        "critic/explained_variance": 1 - sum(errors) / len(errors) / float(np.var(targets)),
    }
    for answer in scored:
        if ppo.doubt:
            answer.advantage /= 1 + answer.turn.reward_std
    if ppo.whiten:
        mean, std = mean_and_std([answer.advantage for answer in scored])
        for answer in scored:
            answer.advantage = (answer.advantage - mean) / math.sqrt(std**2 + 1e-8)
    return figures


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """With Bessel's correction."""
    return float(np.mean(values)), float(np.std(values, ddof=1))


def measure_kl(case: Case, answers: list[list[Answer]]) -> dict[str, float]:
    """Mean KL per answer of what was sampled, and the coefficient that follows from it."""
    ppo, total, count, tokens = case.settings.ppo, 0.0, 0, 0
    for episode in answers:
        for answer in episode:
            for sampled, reference in zip(answer.turn.log_probs, answer.reference, strict=True):
                total += sampled - reference
                tokens += 1
            count += 1
    coefficient = ppo.kl
    if ppo.kl_target is not None:
        error = total / count / ppo.kl_target - 1
        coefficient *= 1 + max(-0.2, min(0.2, error)) * len(answers) / ppo.kl_horizon
    return {
        "objective/kl": total / count,
        "objective/kl_per_token": total / tokens,
        "ppo/kl_coefficient": coefficient,
    }


# --- losses ---------------------------------------------------------------------------------------


def policy_objective(
    case: Case, policy: ReactiveTransformer, answers: list[list[Answer]], kl_coefficient: float
) -> tuple[Tensor, dict[str, float]]:
    ppo, zero = case.settings.ppo, torch.zeros((), dtype=torch.float64)
    surrogate = kl = entropy = penalty = zero
    tokens = turns = clipped = 0
    routed: list[list[Routing]] = []
    half_square = log_ratio = k3 = change = largest_ratio = largest_difference = 0.0
    for episode, its_answers in zip(case.episodes, answers, strict=True):
        for answer in its_answers:
            old, memory = memory_for(policy, episode, answer.number + 1, ppo.bptt_turns)
            moved = (memory - old).square().mean()
            penalty = penalty + math.sqrt(answer.number + 1) * moved
            change += float(moved.detach())
            turns += 1
            routings: list[Routing] = []
            query, said = answer.turn.query_ids, answer.turn.answer_ids
            found = distributions(policy, query, said, memory, case.temperature, routings)
            routed.append(routings)
            for position, log_probs in enumerate(found):
                log_prob = log_probs[said[position]]
                difference = log_prob - answer.turn.log_probs[position]
                largest_difference = max(largest_difference, abs(float(difference.detach())))
                if answer.turn.reward is None:
                    continue
                ratio = difference.exp()
                bounded = ratio.clamp(1 - ppo.clip, 1 + ppo.clip)
                gain, bounded_gain = ratio * answer.advantage, bounded * answer.advantage
                surrogate = surrogate - torch.minimum(gain, bounded_gain)
                clipped += int(bounded_gain < gain)
                apart = log_prob - answer.reference[position]
                kl = kl + (apart**2 / 2 if ppo.kl_estimator == "k2" else (-apart).exp() - 1 + apart)
                entropy = entropy - (log_probs.exp() * log_probs).sum()
                half_square += float(difference.detach()) ** 2 / 2
                log_ratio += abs(float(difference.detach()))
                k3 += float((ratio - 1 - difference).detach())
                largest_ratio = max(largest_ratio, abs(float(ratio.detach()) - 1))
                tokens += 1
    loss = (surrogate + kl_coefficient * kl - ppo.entropy * entropy) / tokens
    loss = loss + ppo.memory_change * penalty / turns
    router = {}
    if policy.config.experts:
        balance = router_loss(routed, policy.config.experts)
        loss = loss + case.settings.router_loss * balance
        router["train/loss_router"] = float(balance.detach())
    return loss, router | {
        "ppo/loss_policy": float(surrogate.detach()) / tokens,
        "ppo/loss_kl": float(kl.detach()) / tokens,
        "objective/entropy": float(entropy.detach()) / tokens,
        "ppo/loss_memory_change": float(penalty.detach()) / turns,
        "ppo/clip_fraction": clipped / tokens,
        "ppo/approx_kl": half_square / tokens,
        "ppo/approx_kl_k3": k3 / tokens,
        "ppo/log_ratio": log_ratio / tokens,
        "ppo/ratio_max_deviation_first": largest_ratio,
        "ppo/log_prob_max_difference": largest_difference,
        "memory/change": change / turns,
    }


def critic_objective(
    case: Case, critic: Critic, answers: list[list[Answer]]
) -> tuple[Tensor, dict[str, float]]:
    clip = case.settings.ppo.value_clip * case.reward_width
    loss, clipped, values, targets = torch.zeros((), dtype=torch.float64), 0, [], []
    for episode in answers:
        for answer in episode:
            if answer.turn.reward is None:
                continue
            value = value_of(critic, answer.critic_row, answer.critic_memory)
            held = value.clamp(answer.old_value - clip, answer.old_value + clip)
            error, held_error = (value - answer.target) ** 2, (held - answer.target) ** 2
            loss = loss + torch.maximum(error, held_error) / 2
            clipped += int(held_error > error)
            values.append(float(value.detach()))
            targets.append(answer.target)
    turns = len(values)
    return loss / turns, {
        "critic/loss": float(loss.detach()) / turns,
        "ppo/value_clip_fraction": clipped / turns,
        "critic/values": sum(values) / turns,
        "critic/returns": sum(targets) / turns,
    }
