"""The explorer's colours, for napari's dark theme and for its light one. A number or a name always stands beside them."""

from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

FONT_PT = 9
CHOSEN = "#ffd60a"
"""Frames of chosen tiles: on pictures, which are grey in both themes; they have a dark edge and a tick beside them."""


@dataclass(frozen=True)
class Theme:
    """Colours that go together."""

    background: str
    text: str
    faint: str
    """Lines and less important texts."""
    mark: str
    """What lies over the points: stands out against the background and against all colours of points, with an edge of the background."""
    nothing: tuple[float, float, float]
    """Of particles that belong to no region."""
    distinct: tuple[str, ...]
    """Of groups."""
    ramp: tuple[float, float]
    """The part of viridis that is seen well on the background."""


DARK = Theme(
    background="#1e2127",
    text="#d7dae0",
    faint="#8a8f9a",
    mark="#ffffff",
    nothing=(0.62, 0.65, 0.70),
    distinct=(
        *("#4cc9f0", "#ffb703", "#8bd450", "#ff6b6b", "#c77dff", "#f4a3c4"),
        *("#2ec4b6", "#e6e6e6", "#ff8c42", "#a0c4ff", "#d4e157", "#c9a27e"),
    ),
    ramp=(0.22, 1.0),
)
LIGHT = Theme(
    background="#fbfbfc",
    text="#22252b",
    faint="#6b707b",
    mark="#000000",
    nothing=(0.55, 0.57, 0.62),
    distinct=(
        *("#0077b6", "#c97a00", "#3b8a1e", "#d62839", "#7b2cbf", "#c2457f"),
        *("#00796b", "#4a4e57", "#d95d0c", "#3f6fc4", "#8a8f00", "#8a5a2b"),
    ),
    ramp=(0.0, 0.86),
)

theme = DARK
"""The present one; see `use`."""


def use(*, dark: bool) -> None:
    """Take the colours that go with a dark or a light window; what is drawn from now on has them."""
    global theme  # there is one window, and it has one theme
    theme = DARK if dark else LIGHT


def of_number(number: int) -> tuple[float, float, float]:
    """Colour of class or region ``number`` (from 1); they repeat after a dozen."""
    return to_rgb(theme.distinct[(number - 1) % len(theme.distinct)])


def of_codes(codes: NDArray[np.floating], first: int = 1) -> NDArray[np.float64]:
    """Colours [..., 3] of codes [...], of which ``first`` is the first to have a colour and those below have none; NaN is black."""
    known = np.isfinite(codes)
    whole = np.where(known, codes, first - 1).astype(np.int64)
    table = np.array([of_number(k + 1) for k in range(len(theme.distinct))])
    out = table[(whole - first) % len(table)]
    out[whole < first] = theme.nothing
    out[~known] = 0
    return out


def of_levels(levels: NDArray[np.floating], low: float, high: float) -> NDArray[np.float64]:
    """Colours [..., 3] of numbers [...] between ``low`` and ``high``; NaN is black."""
    share = np.clip((levels - low) / max(high - low, 1e-12), 0, 1)
    table = matplotlib.colormaps["viridis"](np.linspace(*theme.ramp, 256))[:, :3]
    out = table[np.where(np.isfinite(share), share * 255, 0).astype(np.int64)]
    out[~np.isfinite(levels)] = 0
    return out
