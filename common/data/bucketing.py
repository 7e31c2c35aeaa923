"""Which sequences to compute together: few calls against little padding."""

from __future__ import annotations

from collections.abc import Sequence


def by_width(widths: Sequence[int], call_cost: float) -> list[list[int]]:
    """Indices of sequences in groups, each computed in one call as wide as its widest, so that the
    total cost is least.

    widths: padded length of each. call_cost: what a call costs besides its tokens, in tokens.
    Groups go from wide to narrow.
    """
    distinct = sorted(set(widths), reverse=True)
    members = {width: [i for i, each in enumerate(widths) if each == width] for width in distinct}
    # best[k]: least cost of the sequences narrower than distinct[k - 1], and where the group that
    # begins with distinct[k] ends.
    best: list[tuple[float, int]] = [(0.0, len(distinct))] * (len(distinct) + 1)
    for start in reversed(range(len(distinct))):
        count, options = 0, []
        for end in range(start, len(distinct)):
            count += len(members[distinct[end]])
            options.append((call_cost + count * distinct[start] + best[end + 1][0], end + 1))
        best[start] = min(options)
    groups, start = [], 0
    while start < len(distinct):
        end = best[start][1]
        groups.append([i for width in distinct[start:end] for i in members[width]])
        start = end
    return groups
