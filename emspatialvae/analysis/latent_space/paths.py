"""Ways through content space, and how many particles lie along them: pure functions of z."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from emspatialvae.imaging.arrays import Floats

REACH = 2.0
"""A particle is near a point if their distance is at most that many of z's s.d., r.m.s. over the coordinates that tell anything."""
AVERAGED = 100
"""Particles in each of the averages along a path."""
FARTHEST = 2.0
"""Of them the farthest lies so many widths of the kernel away, and counts exp(-2) as much as one that lies at the point."""


@dataclass(frozen=True, eq=False)
class ZPath:
    """Points along a path through content space and the particles about each."""

    z: Floats
    """[k, d]"""
    travelled: Floats
    """[k]; length of the path from its beginning, in units of z (its prior's s.d.)."""
    near: NDArray[np.int64]
    """[k]; particles within `REACH` of the point: where there are few, what is drawn there was never seen."""
    members: NDArray[np.int64]
    """[k, m]; the rows of the m = 100 nearest particles (fewer if there are no more)."""
    weights: Floats
    """[k, m]; what each of them counts in an average about the point: a Gaussian of its distance, as wide as `FARTHEST` says."""


def straight(start: Floats, end: Floats, steps: int) -> Floats:
    """Points at equal steps along the line from ``start`` [d] to ``end`` [d], both ends with it; shape [steps, d]."""
    share = np.linspace(0, 1, steps)[:, None]
    return (1 - share) * start + share * end


def typical_sd(z_sd: Floats) -> Floats:
    """How well z is known: median of the posterior's s.d. [n, d] over the particles, never 0; shape [d]."""
    return np.maximum(np.median(z_sd, axis=0), 1e-6)


def walk(points: Floats, z: Floats, unit: Floats) -> ZPath:
    """The particles with contents z [n, d] along points [k, d], distances measured in ``unit`` [d] per coordinate.

    A coordinate counts by what an image tells of it, 1 - unit^2: nothing if its s.d. is that of the prior.
    """
    told = max(float((1 - np.minimum(unit, 1) ** 2).sum()), 1.0)
    m = min(AVERAGED, len(z))
    near, members, weights = [], [], []
    for point in points:  # one at a time: a million particles times all steps would be gigabytes
        distance = np.sqrt((((z - point) / unit) ** 2).sum(1) / told)
        own = np.argpartition(distance, m - 1)[:m]
        near.append(int((distance <= REACH).sum()))
        own = own[np.argsort(distance[own], kind="stable")]
        members.append(own)
        away = distance[own] / max(distance[own[-1]], 1e-12)
        weights.append(np.exp(-((FARTHEST * away) ** 2) / 2))
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return ZPath(
        points, np.concatenate([[0.0], np.cumsum(steps)]), np.array(near), np.array(members), np.array(weights)
    )


def membership(path: ZPath, rows: NDArray[np.int64], n: int) -> sparse.csr_array:
    """What each particle of a stack of n counts in the average about each step; shape [n, k].

    ``rows``: where in the stack the particles lie that the path was walked with.
    """
    steps = np.repeat(np.arange(len(path.z)), path.members.shape[1])
    weights = path.weights.ravel().astype(np.float32)
    return sparse.csr_array((weights, (rows[path.members].ravel(), steps)), shape=(n, len(path.z)))
