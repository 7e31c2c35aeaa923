"""How colours look to colour-blind readers, and how far apart two of them lie.

Nothing of the page is used here. Deficiencies are simulated by the matrices of Machado, Oliveira
and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency" (IEEE
Transactions on Visualization and Computer Graphics 15(6), 2009), at severity 1.0, on linear RGB.
Distances are those of CIE 1976 in L*a*b* (D65), of which 2.3 is a just noticeable difference
(Mahy, van Eycken and Oosterlinck 1994).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

DEFICIENCIES = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
TO_XYZ = np.array(
    ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750),
     (0.0193339, 0.1191920, 0.9503041))
)  # fmt: skip
"""Linear sRGB to XYZ (IEC 61966-2-1)."""
WHITE = np.array((0.95047, 1.0, 1.08883))


def linear(colour: str) -> np.ndarray:
    """Linear RGB of `#rrggbb`: [3]."""
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """L*a*b* of linear RGB: [3]."""
    ratio = TO_XYZ @ rgb / WHITE
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array((116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])))


def distance(one: str, other: str, deficiency: str | None = None) -> float:
    """CIE 1976 distance of two colours as somebody with the deficiency sees them."""
    seen = np.eye(3) if deficiency is None else np.array(DEFICIENCIES[deficiency])
    first, second = (lab(np.clip(seen @ linear(each), 0, 1)) for each in (one, other))
    return float(np.linalg.norm(first - second))


def palette(sheet: Path, theme: str) -> dict[str, str]:
    """Colours `--name: #rrggbb` of a style sheet, of one theme."""
    selector = r":root" if theme == "light" else rf':root\[data-theme="{theme}"\]'
    block = re.search(rf"^{selector} \{{(.*?)\}}", sheet.read_text(), re.S | re.M)
    assert block is not None, f"{sheet} has no colours of {theme}"
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block[1]))
