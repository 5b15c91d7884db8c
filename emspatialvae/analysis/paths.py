"""Ways through content space, and how many particles lie along them: pure functions of z."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from emspatialvae.geometry import Floats

REACH = 2.0
"""A particle is near a point if their distance is at most that many of z's s.d., r.m.s. over the coordinates that tell anything."""
AVERAGED = 100
"""Particles in each of the rolling averages along a path."""


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
    near, members = [], []
    for point in points:  # one at a time: a million particles times all steps would be gigabytes
        distance = np.sqrt((((z - point) / unit) ** 2).sum(1) / told)
        own = np.argpartition(distance, m - 1)[:m]
        near.append(int((distance <= REACH).sum()))
        members.append(own[np.argsort(distance[own], kind="stable")])
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return ZPath(points, np.concatenate([[0.0], np.cumsum(steps)]), np.array(near), np.array(members))


def membership(path: ZPath, rows: NDArray[np.int64], n: int) -> sparse.csr_array:
    """1 where a particle of a stack of n is a member of a step, 0 elsewhere; shape [n, k].

    ``rows``: where in the stack the particles lie that the path was walked with.
    """
    steps = np.repeat(np.arange(len(path.z)), path.members.shape[1])
    ones = np.ones(path.members.size, np.float32)
    return sparse.csr_array((ones, (rows[path.members].ravel(), steps)), shape=(n, len(path.z)))
