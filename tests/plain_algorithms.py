"""Credit and losses of the algorithms without a critic, computed plainly: loops over episodes,
turns and tokens, in float64. It shares the policy's module with the learner, and nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from common.config.mrl import MRL
from common.episode import Episode, Turn
from tests.tiny_policy import TinyModel


@dataclass
class Item:
    """An answered turn."""

    place: int
    turn: Turn
    old: list[float]
    reference: list[float]
    weight: list[float] = field(default_factory=list)
    reward: float | None = None
    value: float = 0.0
    """The return that is compared."""
    advantage: float | None = None
    """None: not learnt from."""


def plain_loss(
    settings: MRL, module: TinyModel, reference: TinyModel, episodes: Sequence[Episode]
) -> tuple[Tensor, list[list[float | None]]]:
    """The loss before the first step, with its graph, and the advantages by episode and turn."""
    section: Any = settings.algorithm_settings
    items = [_items(section, module, reference, episode) for episode in episodes]
    for turns in items:
        _returns(section, turns)
    flat = [item for turns in items for item in turns if item.reward is not None]
    if settings.algorithm == "rejection":
        _choose(section, flat)
    else:
        _compare(settings, items, flat)
    if section.whiten:
        held = [item for item in flat if item.advantage is not None]
        mean = statistics.fmean(item.advantage for item in held)
        spread = sum((item.advantage - mean) ** 2 for item in held)
        size = len(held) - (0 if section.population_variance else 1)
        for item in held:
            item.advantage = (item.advantage - mean) / math.sqrt(spread / size + 1e-8)
    learnt = [item for item in flat if item.advantage is not None]
    loss = _loss(settings, module, learnt)
    return loss, [[item.advantage for item in turns] for turns in items]


def _items(section: Any, module: TinyModel, reference: TinyModel, episode: Episode) -> list[Item]:
    found = []
    for turn in episode.answered:
        now, there = (_log_probs(m, turn) for m in (module, reference))
        old, weight = list(turn.log_probs), [1.0] * len(turn.log_probs)
        if section.mismatch.correct != "none":
            old = [float(x.detach()) for x in now]
            weight = _weights(section.mismatch, old, turn.log_probs)
        item = Item(
            episode.batch_index, turn, old, [float(x.detach()) for x in there], weight, turn.reward
        )
        if item.reward is not None and section.kl_in == "reward":
            for one, other in zip(item.old, item.reference, strict=True):
                item.reward -= section.kl * (one - other)
        found.append(item)
    return found


def _weights(mismatch: Any, own: Sequence[float], recorded: Sequence[float]) -> list[float]:
    ratios = [math.exp(a - b) for a, b in zip(own, recorded, strict=True)]
    if mismatch.level == "answer":
        ratios = [math.prod(ratios)] * len(ratios)
    if mismatch.correct == "truncate":
        return [min(ratio, mismatch.limit) for ratio in ratios]
    return [float(1 / mismatch.limit <= ratio <= mismatch.limit) for ratio in ratios]


def _log_probs(module: TinyModel, turn: Turn) -> list[Tensor]:
    found = module(turn.query_ids, turn.answer_ids)
    return [found[i, token] for i, token in enumerate(turn.answer_ids)]


def _returns(section: Any, turns: list[Item]) -> None:
    scored = [item for item in turns if item.reward is not None]
    later = 0.0
    for item in reversed(scored):
        later = float(item.reward or 0.0) + section.discount * later
        item.value = later
    if getattr(section, "compare", "turn") == "episode":
        for item in scored:
            item.value = scored[0].value


def _compare(settings: MRL, items: list[list[Item]], flat: list[Item]) -> None:
    section: Any = settings.algorithm_settings
    if settings.algorithm == "reinforce":
        for item in flat:
            item.advantage = item.value  # the baseline before the first batch is 0
        return
    tasks: dict[int, list[list[Item]]] = {}
    for turns in items:
        tasks.setdefault(turns[0].place // section.samples, []).append(turns)
    for members in tasks.values():
        whole = [turns for turns in members if all(t.reward is not None for t in turns)]
        if section.incomplete == "leave_out" and len(whole) < section.samples:
            continue
        for turns in members:
            for number, item in enumerate(turns):
                if item.reward is None:
                    continue
                if section.compare == "episode":
                    others = [m for m in members if any(t.reward is not None for t in m)]
                    values = [next(t.value for t in m if t.reward is not None) for m in others]
                else:
                    values = [
                        m[number].value
                        for m in members
                        if number < len(m) and m[number].reward is not None
                    ]
                if len(values) > 1:
                    item.advantage = _against(settings, item.value, values)
        if section.aggregation == "normalise_then_sum":
            _decouple(settings, members)


def _decouple(settings: MRL, members: list[list[Item]]) -> None:
    """The advantages of a task anew: of each component by itself, summed by weight."""
    section: Any = settings.algorithm_settings
    learnt = [item for turns in members for item in turns if item.advantage is not None]
    for item in learnt:
        item.advantage = 0.0
    for name in ("quality", "recall"):
        columns: dict[int, list[tuple[Item, float, float]]] = {}
        for turns in members:
            scored = [(n, item) for n, item in enumerate(turns) if item.reward is not None]
            later, weight, of_turn = 0.0, 0.0, {}
            for number, item in reversed(scored):
                later = section.discount * later
                if name in item.turn.terms:
                    term, raw = item.turn.terms[name], item.turn.rewards[name]
                    later += (min(max(raw, term.low), term.high) - term.mean) / term.std
                    weight = term.weight
                of_turn[number] = later, weight
            for number, item in scored:
                column = 0 if section.compare == "episode" else number
                own = of_turn[scored[0][0] if section.compare == "episode" else number]
                if own[1] > 0:
                    columns.setdefault(column, []).append((item, *own))
        for held in columns.values():
            values = {item.place: value for item, value, _ in held}
            for item, value, weight in held:
                if item.advantage is not None and len(values) > 1:
                    mean = statistics.fmean(values.values())
                    apart = value - mean
                    if settings.algorithm == "rloo":
                        apart *= len(values) / (len(values) - 1)
                    item.advantage += weight * apart / (statistics.stdev(values.values()) + 1e-4)


def _against(settings: MRL, value: float, values: list[float]) -> float:
    if settings.algorithm == "rloo":
        return value - (sum(values) - value) / (len(values) - 1)
    std = statistics.stdev(values) + 1e-4 if settings.grpo.divide_by_std else 1.0
    return (value - statistics.fmean(values)) / std


def _choose(section: Any, flat: list[Item]) -> None:
    by_episode = section.compare == "episode"
    buckets: dict[int, list[list[Item]]] = {}
    for item in flat:
        task = item.place // section.samples if section.keep_of == "task" else 0
        bucket = buckets.setdefault(task, [])
        if by_episode and bucket and bucket[-1][0].place == item.place:
            bucket[-1].append(item)
        else:
            bucket.append([item])
    for bucket in buckets.values():
        share = max(1, math.floor(section.keep_share * len(bucket) + 1e-9))
        number = share if section.keep is None else section.keep
        for chosen in sorted(bucket, key=lambda each: -each[0].value)[:number]:
            for item in chosen:
                item.advantage = 1.0


def _loss(settings: MRL, module: TinyModel, learnt: list[Item]) -> Tensor:
    section: Any = settings.algorithm_settings
    policy, kl, entropy = ([], [], [])  # per answer: list of tokens
    for item in learnt:
        now = _log_probs(module, item.turn)
        rows = module(item.turn.query_ids, item.turn.answer_ids)
        entropy += [-(row.exp() * row).sum() for row in rows]
        kl.append(
            [
                _kl(section, new, old, there)
                for new, old, there in zip(now, item.old, item.reference, strict=True)
            ]
        )
        policy.append(_policy(settings, module, item, now))
    tokens = sum(len(item.old) for item in learnt)
    weight = section.kl if section.kl_in == "loss" else 0.0
    mean = _mean if _ratio(settings) != "answer" else _answers
    return (
        mean(section.loss_mean, policy)
        + weight * _mean(section.loss_mean, kl)
        - section.entropy * sum(entropy) / tokens
    )


def _ratio(settings: MRL) -> str:
    return str(getattr(settings.algorithm_settings, "ratio", "none"))


def _answers(_: str, items: list[list[Tensor]]) -> Tensor:
    return sum(part[0] for part in items) / len(items)


def _mean(mean: str, items: list[list[Tensor]]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for part in items:
        total = total + sum(part) / (len(part) if mean == "answer_means" else 1)
    return total / (sum(map(len, items)) if mean == "tokens" else len(items))


def _kl(section: Any, new: Tensor, old: float, there: float) -> Tensor:
    apart = new - there
    estimate = {
        "k1": apart,
        "k2": apart**2 / 2,
        "k3": (-apart).exp() - 1 + apart,
    }[section.kl_estimator]
    if not section.kl_correction:
        return estimate
    ratio = (new - old).exp()
    return estimate * (ratio if section.kl_estimator == "k1" else ratio.detach())


def _policy(settings: MRL, module: TinyModel, item: Item, now: list[Tensor]) -> list[Tensor]:
    section: Any = settings.algorithm_settings
    advantage, ratio = float(item.advantage or 0.0), _ratio(settings)
    if settings.algorithm == "rejection":
        turn, found = item.turn, [-new for new in now]
        if section.learn_queries:
            first, *others = turn.query_ids
            rows = module([first], others)
            found = [-rows[i, token] for i, token in enumerate(others)] + found
        return found
    if ratio == "none":
        return [-advantage * new * w for new, w in zip(now, item.weight, strict=True)]
    apart = [new - old for new, old in zip(now, item.old, strict=True)]
    weights = item.weight
    if ratio == "answer":
        size = len(apart) if settings.algorithm == "grpo" else 1
        apart, weights = [sum(apart) / size], [statistics.fmean(item.weight)]
    high = section.clip if section.clip_high is None else section.clip_high
    losses = []
    for difference, weight in zip(apart, weights, strict=True):
        new_ratio = difference.exp()
        held = new_ratio.clamp(1 - section.clip, 1 + high)
        losses.append(weight * -torch.minimum(new_ratio * advantage, held * advantage))
    return losses
