"""Whether reported uncertainties mean what they say: shares of errors within one s.d., and probabilities of modes."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from emspatialvae.imaging.arrays import Floats

WEIGHT_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0)
RIGHT_MODE_RAD = np.radians(15)
"""An angle as near as this is in the right mode, however sharp its posterior..."""
RIGHT_MODE_SD = 4
"""...and so is one within that many of its s.d."""


@dataclass(frozen=True)
class PeakWeightBin:
    """Particles whose reported peak weight lies between two edges."""

    low: float
    high: float
    n: int
    reported: float
    """Mean of the reported probabilities that the pose lies in the right mode."""
    found: float
    """Share of the particles whose pose does."""


def share_within(
    error: NDArray[np.floating], sd: NDArray[np.floating] | None, rows: NDArray[np.bool_] | None = None
) -> float | None:
    """Share of the errors [n, ...] that are at most one s.d., among some ``rows`` [n] [default: all].

    None without s.d., without rows, or where every s.d. is zero.
    """
    if sd is None or not np.any(sd) or (rows is not None and not rows.any()):
        return None
    within = np.abs(error) <= sd
    return float(np.mean(within if rows is None else within[rows]))


def in_right_mode(theta_error_rad: Floats, theta_sd_rad: Floats | None) -> NDArray[np.bool_]:
    """Whether each angle [n] lies in the truth's mode: within 15 degrees, or 4 s.d. where those are more."""
    reach = RIGHT_MODE_RAD if theta_sd_rad is None else np.maximum(RIGHT_MODE_RAD, RIGHT_MODE_SD * theta_sd_rad)
    return np.abs(theta_error_rad) <= reach


def peak_weight_bins(peak_weight: Floats, right: NDArray[np.bool_]) -> tuple[PeakWeightBin, ...]:
    """Reported probabilities [n] against what is so [n], in the bins of `WEIGHT_EDGES` that hold particles."""
    which = np.digitize(peak_weight, WEIGHT_EDGES[1:-1])
    members = [which == k for k in range(len(WEIGHT_EDGES) - 1)]
    return tuple(
        PeakWeightBin(low, high, int(own.sum()), float(peak_weight[own].mean()), float(right[own].mean()))
        for (low, high), own in zip(pairwise(WEIGHT_EDGES), members, strict=True)
        if own.any()
    )


def peak_weight_error(bins: tuple[PeakWeightBin, ...]) -> float:
    """Mean absolute difference of reported and found over the particles, bin by bin."""
    return float(np.average([abs(own.reported - own.found) for own in bins], weights=[own.n for own in bins]))
