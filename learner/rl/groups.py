"""Comparison of the episodes of one task, wherever they lie: figures of the whole batch on every
rank, and the statistics of each group of episodes that started alike.

Pure but for sums over ranks. An advantage depends neither on which rank holds an episode nor on
what lies in padding. A group stands in `samples` places of the batch in a row; a place without an
episode is one that failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.parallel.group import Group
from learner.rl.advantages import SAME, generalized_advantages
from learner.rl.experience import Experience


def gather_batch(
    parts: Sequence[Tensor], places: Sequence[int], group: Group, multiple: int = 1
) -> Tensor:
    """Figures of all episodes of the batch, [parts, places, turns] in float64: the same on every
    rank, 0 where there is no such episode or turn.

    parts: [episodes, turns] each, of this rank, which may have none. places: of its episodes in the
    batch. multiple: places are rounded up to one of it. All ranks call it together.
    """
    columns = parts[0].shape[1]
    largest = torch.tensor([max(places, default=-1) + 1, columns], device=group.device)
    rows, turns = group.max(largest).tolist()
    rows += -rows % multiple
    table = torch.zeros(len(parts), rows, turns, dtype=torch.float64, device=group.device)
    index = torch.tensor(list(places), dtype=torch.long, device=group.device)
    table[:, index, :columns] = torch.stack([part.to(table) for part in parts])
    return group.sum(table)


def compared_returns(
    experience: Experience, discount: float, by_episode: bool
) -> tuple[Tensor, Tensor]:
    """Returns and where there is one: [episodes, actions] of what was earned from an action on,
    or [episodes, 1] of what whole episodes earned.

    The return of an episode is that of its first scored turn. Turns without a score are stepped
    over, as if they had never happened.
    """
    scored = experience.scored
    nothing, discounts = torch.zeros_like(experience.rewards), experience.discounts(discount)
    returns, _ = generalized_advantages(experience.rewards, nothing, 0.0, discounts, 1.0, scored)
    if not by_episode:
        return returns, scored
    first = scored.int().argmax(1, keepdim=True)
    return returns.gather(1, first), scored.any(1, keepdim=True)


@dataclass(frozen=True)
class Comparison:
    """Statistics of the group of each value, [episodes, columns] of this rank in float64."""

    count: Tensor
    """Values that are compared, its own among them."""
    mean: Tensor
    std: Tensor
    """With Bessel's correction; 0 where there is one value."""
    kept: Tensor
    """bool: where a value is learnt from."""
    figures: dict[str, float]
    """Shares of tasks, by name of a metric."""


def compare(
    values: Tensor,
    scored: Tensor,
    whole: Tensor,
    places: Sequence[int],
    samples: int,
    leave_out: bool,
    group: Group,
) -> Comparison:
    """Compare the values of each column with those of the same column of the other members.

    values, scored: [episodes, columns]. whole: [episodes], whether all turns of an episode are
    scored. leave_out: keep nothing of a group that has fewer than `samples` whole members. A value
    that is alone in its column is never kept. All ranks call it together.
    """
    wholes = whole[:, None].expand_as(scored)
    parts = [torch.where(scored, values, 0.0), scored, wholes]
    table = gather_batch(parts, places, group, samples).unflatten(1, (-1, samples))
    held, present = table[0], table[1] > 0  # [tasks, samples, columns]
    complete = (table[2] > 0).any(2).all(1)
    count = present.sum(1)
    mean = held.sum(1) / count.clamp(min=1)
    deviations = torch.where(present, held - mean[:, None], 0.0)
    std = (deviations.square().sum(1) / (count - 1).clamp(min=1)).sqrt()
    kept = (count > 1) & (complete[:, None] if leave_out else torch.ones_like(complete)[:, None])
    alike = (std <= SAME * mean.abs().clamp(min=SAME)) | ~kept
    index = torch.tensor(list(places), dtype=torch.long, device=group.device) // samples
    columns = values.shape[1]
    mine = [each[index, :columns] for each in (count, mean, std, kept)]
    figures = {
        "objective/tasks_incomplete": 1.0 - float(complete.double().mean()),
        "objective/tasks_left_out": 1.0 - float(kept.any(1).double().mean()),
        "objective/tasks_alike": float(alike.all(1).double().mean()),
    }
    return Comparison(mine[0], mine[1], mine[2], mine[3] & scored, figures)
