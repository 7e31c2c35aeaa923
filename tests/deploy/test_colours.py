"""Colours of the pages that readers must tell apart, as colour-blind readers see them."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest

from deploy.pages.frame import FRAME_STYLES, STATIC
from tests.browser import THEMES
from tests.colour_vision import DEFICIENCIES, distance, palette

CURVES = [f"c{index}" for index in range(7)]
MARKS = ["told", "good", "bad"]
"""A value that is told, one that is recalled, one that is missed or wrong: these two have one
colour, and another sign and line (`test_view_page.py`)."""
FAR = {"curves": 15.0, "marks": 20.0}
"""CIE 1976, where 2.3 is just noticeable side by side. Curves are thin lines and marks are words,
both far from the legend that explains them."""
FRAME = STATIC / FRAME_STYLES[0]


@pytest.mark.parametrize("seen", [None, *DEFICIENCIES], ids=str)
@pytest.mark.parametrize("theme", THEMES)
def test_colours_that_mean_something_are_told_apart_by_everybody(
    theme: str, seen: str | None
) -> None:
    colours = palette(FRAME, theme)
    for kind, names in (("curves", CURVES), ("marks", MARKS)):
        near = {
            f"{one} {other}": round(found, 1)
            for one, other in combinations(names, 2)
            if (found := distance(colours[one], colours[other], seen)) < FAR[kind]
        }
        assert near == {}, f"{kind} are too alike"


def test_all_colours_of_curves_are_compared() -> None:
    page = STATIC.parent.parent / "view" / "static"
    (count,) = re.findall(r"const COLOURS = (\d+);", (page / "plot.js").read_text())
    assert int(count) == len(CURVES)
    sheets = [path.read_text() for path in (*page.glob("*.css"), *STATIC.glob("*.css"))]
    assert set(re.findall(r"var\(--(c\d+)\)", "".join(sheets))) <= set(CURVES)


def test_simulated_colours_are_those_of_the_literature() -> None:
    """Grey stays grey; red and green of one lightness fall together for those who lack one of two
    cones, and stay apart for those who lack the third; blue and green the other way round."""
    for name in DEFICIENCIES:
        assert distance("#808080", "#808080", name) == 0
        assert distance("#ffffff", "#000000", name) == pytest.approx(100, abs=1)
    assert distance("#d55e00", "#8a6d00", "protanopia") < 5 < 40 < distance("#d55e00", "#8a6d00")
    assert distance("#d55e00", "#8a6d00", "tritanopia") > 40
    assert distance("#007a58", "#0072b2", "tritanopia") < 12 < 50 < distance("#007a58", "#0072b2")
    assert distance("#ff0000", "#00ff00") == pytest.approx(170.6, abs=0.2), "CIE 1976 of sRGB"


def test_a_palette_is_read_from_its_own_block() -> None:
    light, dark = (palette(Path(FRAME), theme) for theme in THEMES)
    assert light.keys() == dark.keys() >= {*CURVES, *MARKS}
    assert not set(light.values()) & set(dark.values())
