"""Ways through latent space, and how many particles lie along them: pure functions of z."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from emspatialvae.imaging.arrays import Floats

REACH = 2.0
"""A particle is near a point if their distance is at most that many of z's s.d., r.m.s. over the coordinates that tell anything."""
AVERAGED = 100
"""Particles in each of the averages along a path."""
SMOOTHINGS = 4
"""Passes of a three-point average over the corners of a path that goes from particle to particle."""
FARTHEST = 2.0
"""Of them the farthest lies so many widths of the kernel away, and counts exp(-2) as much as one that lies at the point."""


@dataclass(frozen=True, eq=False)
class ZPath:
    """Points along a path through latent space and the particles about each."""

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


def through_data(z: Floats, start: int, end: int, steps: int, *, neighbours: int = 12, most: int = 50_000) -> Floats:
    """Points along the shortest way from one particle to another that goes from neighbour to neighbour; shape [steps, d].

    A step costs its length squared, so that many short steps, through where particles lie, are cheaper than one jump over where
    none do. The corners of the way are smoothed a little and the points lie at equal distances along it, both ends with them.

    Parameters
    ----------
    z
        Latents [n, d] in units in which distances mean something, say the s.d. of what is known of them.
    start, end
        Rows.
    neighbours
        Of each particle; where the graph falls apart twice as many are tried, and so on.
    most
        Of more particles than that only so many, drawn at random, are walked over.
    """
    rows = np.arange(len(z))
    if len(z) > most:
        drawn = np.random.default_rng(0).choice(len(z), most, replace=False)
        rows = np.unique(np.concatenate([drawn, [start, end]]))
    points = z[rows]
    first, last = np.searchsorted(rows, [start, end]).tolist()
    corners = points[_shortest(points, first, last, neighbours)]
    for _ in range(SMOOTHINGS if len(corners) > 4 else 0):  # from one noisy point to the next it would tremble
        inner = (corners[:-2] + 2 * corners[1:-1] + corners[2:]) / 4
        corners = np.concatenate([corners[:1], inner, corners[-1:]])
    travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    kept = np.concatenate([[True], np.diff(travelled) > 0])
    at = np.linspace(0, travelled[-1], steps)
    return np.stack([np.interp(at, travelled[kept], corners[kept, k]) for k in range(z.shape[1])], 1)


def _shortest(points: Floats, first: int, last: int, neighbours: int) -> list[int]:
    """The points [n, d] that the shortest way on their neighbour graph visits."""
    from scipy.sparse.csgraph import dijkstra
    from scipy.spatial import KDTree

    tree, n = KDTree(points), len(points)
    while True:
        count = min(neighbours + 1, n)
        distance, found = tree.query(points, k=count)
        cost = np.maximum(np.reshape(distance, (n, count))[:, 1:] ** 2, 1e-12)  # a cost of nothing would be no edge
        own = np.repeat(np.arange(n), count - 1)
        graph = sparse.csr_array((cost.ravel(), (own, np.reshape(found, (n, count))[:, 1:].ravel())), shape=(n, n))
        _, before = dijkstra(graph, directed=False, indices=[first], return_predecessors=True)
        before = before[0]
        if before[last] >= 0 or first == last or count == n:
            break
        neighbours *= 2
    way = [last]
    while way[-1] != first:
        way.append(int(before[way[-1]]))
    return way[::-1]


def typical_sd(z_sd: Floats) -> Floats:
    """How well z is known: median of the posterior's s.d. [n, d] over the particles, never 0; shape [d]."""
    return np.maximum(np.median(z_sd, axis=0), 1e-6)


def walk(points: Floats, z: Floats, unit: Floats) -> ZPath:
    """The particles with latents z [n, d] along points [k, d], distances measured in ``unit`` [d] per coordinate.

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
