from __future__ import annotations

import random

from common.data.bucketing import by_width


def cost(groups: list[list[int]], widths: list[int], call_cost: float) -> float:
    return sum(call_cost + len(group) * max(widths[i] for i in group) for group in groups)


def cheapest(widths: list[int], call_cost: float) -> float:
    """Over all ways to cut the sorted sequences."""
    ordered = sorted(range(len(widths)), key=lambda i: -widths[i])
    costs = []
    for cuts in range(2 ** (len(widths) - 1)):
        groups = [[ordered[0]]]
        for k, i in enumerate(ordered[1:]):
            if cuts >> k & 1:
                groups.append([])
            groups[-1].append(i)
        costs.append(cost(groups, widths, call_cost))
    return min(costs)


def test_groups_hold_every_sequence_once_at_the_least_cost() -> None:
    draw = random.Random(0)
    for _ in range(60):
        widths = [16 * draw.randint(1, 8) for _ in range(draw.randint(1, 9))]
        call_cost = draw.choice([0, 10, 128, 1000])
        groups = by_width(widths, call_cost)
        assert sorted(i for group in groups for i in group) == list(range(len(widths)))
        assert cost(groups, widths, call_cost) == cheapest(widths, call_cost)


def test_one_long_sequence_does_not_widen_many_short_ones() -> None:
    assert by_width([32, 208, 32, 32, 32], 128) == [[1], [0, 2, 3, 4]]
    assert by_width([48, 64, 48], 128) == [[1, 0, 2]]
    assert by_width([], 128) == []
