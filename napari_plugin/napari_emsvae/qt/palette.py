"""The explorer's colours: light ones, to be seen on napari's dark canvas. A number or a name always stands beside them."""

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

BACKGROUND, TEXT, FAINT, MARK, PICKED = "#1e2127", "#d7dae0", "#8a8f9a", "#ffffff", "#ff4d4d"
FONT_PT = 9
NOTHING = (0.62, 0.65, 0.70)
"""Of particles that belong to no region."""
DISTINCT = (
    *("#4cc9f0", "#ffb703", "#8bd450", "#ff6b6b", "#c77dff", "#f4a3c4"),
    *("#2ec4b6", "#e6e6e6", "#ff8c42", "#a0c4ff", "#d4e157", "#c9a27e"),
)


def of_number(number: int) -> tuple[float, float, float]:
    """Colour of class or region ``number`` (from 1); they repeat after a dozen."""
    return to_rgb(DISTINCT[(number - 1) % len(DISTINCT)])


def of_codes(codes: NDArray[np.floating], first: int = 1) -> NDArray[np.float64]:
    """Colours [..., 3] of codes [...], of which ``first`` is the first to have a colour and those below have none; NaN is black."""
    known = np.isfinite(codes)
    whole = np.where(known, codes, first - 1).astype(np.int64)
    table = np.array([of_number(k + 1) for k in range(len(DISTINCT))])
    out = table[(whole - first) % len(table)]
    out[whole < first] = NOTHING
    out[~known] = 0
    return out


def of_levels(levels: NDArray[np.floating], low: float, high: float) -> NDArray[np.float64]:
    """Colours [..., 3] of numbers [...] between ``low`` and ``high``; NaN is black."""
    share = np.clip((levels - low) / max(high - low, 1e-12), 0, 1)
    table = matplotlib.colormaps["viridis"](np.linspace(0.22, 1, 256))[:, :3]
    out = table[np.where(np.isfinite(share), share * 255, 0).astype(np.int64)]
    out[~np.isfinite(levels)] = 0
    return out
