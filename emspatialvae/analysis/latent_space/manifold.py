"""Where in z to look: grids and axes through the learned latent space."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from emspatialvae.imaging.arrays import Floats


@dataclass(frozen=True, eq=False)
class ZMap:
    """Tiles over latent space, equally probable steps apart; the first axis runs to the right, the second up."""

    z: Floats
    """[rows * columns, d], row by row from the top."""
    shape: tuple[int, int]
    """Rows and columns."""
    axes: tuple[str, str]
    """What runs to the right and up; the second is empty where there is one row."""
    count: NDArray[np.int64]
    """[rows * columns], particles in each tile's cell. The outermost cells reach on for ever; coordinates that no axis shows do not
    matter."""


def quantiles(n: int) -> Floats:
    """``n`` points of the standard normal through its inverse CDF, equally probable; shape [n]."""
    return stats.norm.ppf((np.arange(n) + 0.5) / n)


def principal_axes(z: Floats, components: tuple[int, ...] = (1, 2)) -> tuple[Floats, Floats]:
    """Mean [d] of latents z [n, d] and some of their principal axes [k, d], counted from 1, each one s.d. long.

    The sign of an axis, which means nothing, is such that its largest entry is positive.
    """
    centred = z - z.mean(0)
    # From the d x d matrix of moments: a million particles need no million singular vectors.
    power, axes = np.linalg.eigh(centred.T @ centred / max(len(z) - 1, 1))
    power, axes = power[::-1], axes.T[::-1]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    picked = [component - 1 for component in components]
    return z.mean(0), axes[picked] * np.sqrt(np.maximum(power[picked], 0))[:, None]


def zmap(z: Floats, n: int, components: tuple[int, ...] | None = None) -> ZMap:
    """A map of latent space, ``n`` tiles along an axis.

    For one or two dimensions the prior's quantiles themselves (the paper's figures); for more, or where ``components`` (one or
    two, from 1) are asked for, the quantiles along principal axes of the particles' z [particles, d], through their mean.
    """
    d = z.shape[1]
    if components is None and d <= 2:
        mean, axes, names = np.zeros(d), np.eye(d), tuple(f"z{k + 1}" for k in range(d))
        along = z
    else:
        components = components or (1, 2)
        mean, axes = principal_axes(z, components)
        names = tuple(f"principal component {k} of z" for k in components)
        length = np.maximum((axes**2).sum(1), 1e-12)
        along = (z - mean) @ axes.T / length
    q = quantiles(n)
    if len(axes) == 1:
        points, shape = q[:, None], (1, n)
    else:
        points, shape = np.stack([a.ravel() for a in np.meshgrid(q, q[::-1])], 1), (n, n)
    column, *up = np.minimum((stats.norm.cdf(along) * n).astype(np.int64), n - 1).T
    row = n - 1 - up[0] if up else np.zeros_like(column)
    count = np.bincount(row * n + column, minlength=shape[0] * n)
    return ZMap(mean + points @ axes, shape, (names[0], names[1] if len(names) > 1 else ""), count)
