"""Where in z to look: grids and axes through the learned content space."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.floating]


def quantiles(n: int) -> Floats:
    """``n`` points of the standard normal through its inverse CDF, equally probable; shape [n]."""
    return stats.norm.ppf((np.arange(n) + 0.5) / n)


def principal_axes(z: Floats) -> tuple[Floats, Floats]:
    """Mean [d] of contents z [n, d] and their first principal axes [k, d], k <= 2, each one s.d. long."""
    centred = z - z.mean(0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    k = min(2, z.shape[1])
    return z.mean(0), axes[:k] * (singular[:k, None] / np.sqrt(max(len(z) - 1, 1)))


def grid(z: Floats, n: int) -> tuple[Floats, tuple[int, int]]:
    """A map of content space, equally probable steps apart.

    For one or two dimensions the prior's quantiles themselves (the paper's figures); for more, the quantiles along the first
    two principal axes of the particles.

    Parameters
    ----------
    z
        Contents of the particles; shape [particles, d].
    n
        Tiles along an axis.

    Returns
    -------
    Contents [rows * columns, d], row by row from the top, and (rows, columns). The first axis runs to the right, the second up.
    """
    q, d = quantiles(n), z.shape[1]
    if d == 1:
        return q[:, None], (1, n)
    across, up = (a.ravel() for a in np.meshgrid(q, q[::-1]))
    if d == 2:
        return np.stack([across, up], 1), (n, n)
    mean, axes = principal_axes(z)
    return mean + across[:, None] * axes[0] + up[:, None] * axes[1], (n, n)
