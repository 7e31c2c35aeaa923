"""A chart of lines as SVG, for pages: light or dark as the reader's page is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 176, 32, 48
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Told apart with any kind of colour blindness (Okabe and Ito 2008)."""
STYLE = """text { font: 13px sans-serif; fill: #444 } .axis { stroke: #999 } \
@media (prefers-color-scheme: dark) { text { fill: #ccc } }"""


class Line(NamedTuple):
    name: str
    points: Sequence[tuple[float, float]]
    """Positive x, which has a logarithmic axis, and y."""


def line_chart(
    lines: Sequence[Line], x_name: str, y_name: str, y_range: tuple[float, float]
) -> str:
    """The chart as text. Ticks of x are powers of two."""
    most = max(x for line in lines for x, _ in line.points)
    ticks = [2**power for power in range(math.floor(math.log2(most)) + 1)]
    low, high = y_range

    def across(x: float) -> float:
        span = math.log2(most) or 1.0
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log2(x) / span

    def down(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low)

    floor = HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(y_name)} by {escape(x_name)}</title><style>{STYLE}</style>",
        f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}"/>',
        *(_text(across(tick), floor + 18, str(tick), "middle") for tick in ticks),
        *(
            _text(LEFT - 8, down(low + (high - low) * i / 4) + 4, f"{low + (high - low) * i / 4:g}")
            for i in range(5)
        ),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_name, "middle"),
        _text(8, 14, y_name, "start"),
    ]
    ends = _apart([down(line.points[-1][1]) for line in lines])
    for line, colour, end in zip(lines, COLOURS, ends, strict=False):
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line.points)
        parts += [
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>',
            f'<circle cx="{WIDTH - RIGHT + 14}" cy="{end:.1f}" r="4" fill="{colour}"/>',
            _text(WIDTH - RIGHT + 24, end + 4, line.name, "start"),
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str = "end") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _apart(heights: Sequence[float], least: float = 18.0) -> list[float]:
    """The heights, moved down where labels would lie over one another, and up from the floor."""
    placed, floor = list(heights), HEIGHT - BOTTOM
    order = sorted(range(len(heights)), key=heights.__getitem__)
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + least)
    placed[order[-1]] = min(placed[order[-1]], floor)
    for below, above in pairwise(reversed(order)):
        placed[above] = min(placed[above], placed[below] - least)
    return placed
