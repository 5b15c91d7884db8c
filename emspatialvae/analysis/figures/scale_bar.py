"""Bars that tell how large a picture is."""

import numpy as np
from matplotlib.axes import Axes


def scale_bar(axes: Axes, box: int, pixel_size_A: float) -> None:
    """A white bar of a round length, up to half a box, in the lower left corner of the picture's upper left box."""
    length_A = round_below(box * pixel_size_A * 0.5)
    x, y = 0.06 * box, 0.92 * box
    axes.plot([x, x + length_A / pixel_size_A], [y, y], color="white", linewidth=1.5, solid_capstyle="butt")
    axes.text(x, y - 0.05 * box, f"{length_A:g} \N{ANGSTROM SIGN}", color="white", fontsize=5, va="bottom")


def round_below(value: float) -> float:
    """The largest of ..., 1, 2, 5, 10, 20, ... that is not above a positive ``value``."""
    unit = 10.0 ** np.floor(np.log10(value))
    return float(unit * next(first for first in (5, 2, 1) if first * unit <= value))
