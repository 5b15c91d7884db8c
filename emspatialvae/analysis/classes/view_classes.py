"""Classes of particles that show views of a 3-D object, for runs without a common frame.

Views some 15 degrees apart have nothing in common when they are compared as images, so a class of such views is a patch of neighbours. What tells
neighbours is the particles: one whose view lies between two others is explained nearly as well by the decoded image of either. So
small groups are made in z, where neighbours are alike; single particles are aligned to the decoded images of all groups; and how many particles two
groups share says how near they are, while the angles at which these fit say how the one image is turned against the other. This finds views that
lie apart in z because the decoder has learned them twice at two angles. Distances are then measured from neighbour to neighbour, groups get places
in a space where distances are those, and k-means makes classes there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import shortest_path
from scipy.spatial import KDTree
from torch import Tensor

from emspatialvae.inference.junk_score import LIKELY
from emspatialvae.model.classical_scaling import classical_scaling
from emspatialvae.model.steerable.observation import Observation
from emspatialvae.model.steerable.template_start import shared_particles, synchronised
from emspatialvae.model.steerable.vae import SteerableVAE
from emspatialvae.results.latents import Latents

MOST_GROUPS, SMALLEST_GROUP = 240, 20
"""Small groups that the map of views is made of, at most, and particles of each on average, at least."""
SHARING_PARTICLES = 4000
"""Particles that are aligned to all groups."""
SHARED_NATS = 16.0
"""How many nats less likely than the best group another one may be to share a particle with it."""
NEIGHBOURS = 8
"""Of each group, that distances are measured along."""
LEAST_SHARED, MOST_SHARED = 1e-6, 1 - 1e-3
"""Range of the share of particles, relative to the largest, from which a length is taken."""
FARTHER = 2.0
"""Groups that nothing joins are so many times the longest distance apart."""
DIMENSIONS, STARTS = 10, 20
"""Of the space in which groups get their places, and of k-means in it."""
LEAST_WEIGHT = 0.02
"""Of the heaviest group: lighter ones, of junk above all, go to the class that is nearest but do not decide where classes lie."""
BLOCK = 2048


@dataclass(frozen=True)
class SmallGroups:
    """A groups of particles that lie together in z.

    ``place`` [A, d], their centres; ``mean`` [A, 2 R], their mean decoded images; ``size`` [A], particles; ``junk_share`` [A], of these.
    """

    place: NDArray[np.float64]
    mean: Tensor
    size: Tensor
    junk_share: NDArray[np.float64]


@torch.no_grad()
def small_groups(model: SteerableVAE, latents: Latents, rows: NDArray[np.int64], count: int, seed: int) -> SmallGroups:
    """``count`` groups of some particles by k-means in z."""
    from sklearn.cluster import KMeans

    once: Any = KMeans(count, n_init="auto", random_state=seed).fit(latents.z[rows])  # one start
    group = torch.from_numpy(once.labels_).long()
    sums = torch.zeros(count, 2 * model.basis.size)
    for part in torch.arange(len(rows)).split(BLOCK):
        sums.index_add_(0, group[part], model.decoder(torch.from_numpy(latents.z[rows[part.numpy()]]).float()))
    size = torch.bincount(group, minlength=count).float()
    junk = np.zeros(len(rows)) if latents.junk is None else latents.junk[rows] > LIKELY
    junk_share = np.bincount(once.labels_, junk, minlength=count) / size.numpy()
    return SmallGroups(once.cluster_centers_, sums / size[:, None], size, junk_share)


@dataclass(frozen=True)
class ViewPatches:
    """Classes as sets of small groups in z.

    ``place`` [A, d], where the groups lie in z; ``of`` [A], the class of each; ``turn_rad`` [A], by which the average of its class is turned in
    it; ``centre`` [k, 2 R], the averages.
    """

    place: NDArray[np.float64]
    of: NDArray[np.int64]
    turn_rad: NDArray[np.float64]
    centre: Tensor

    @classmethod
    def of_particles(
        cls,
        model: SteerableVAE,
        observe: Callable[[NDArray[np.int64]], Observation],
        latents: Latents,
        rows: NDArray[np.int64],
        k: int,
        seed: int,
    ) -> "ViewPatches":
        """K classes, or as many as there are small groups, of some particles; ``observe`` gives their images as the model sees them."""
        groups = small_groups(model, latents, rows, min(MOST_GROUPS, max(k, len(rows) // SMALLEST_GROUP)), seed)
        sharing = np.sort(np.random.default_rng(seed).permutation(rows)[:SHARING_PARTICLES])
        relation = shared_particles(model, observe(sharing), groups.mean, nats=SHARED_NATS)
        relation = (relation + relation.conj().T) / 2
        of = joined(along_neighbours(np.abs(relation)), k, groups.size.double().numpy() * (1 - groups.junk_share), seed)
        turn, centre = np.zeros(len(of)), []
        for number in range(of.max() + 1):
            own = np.flatnonzero(of == number)
            turn[own] = -synchronised(relation[np.ix_(own, own)]) if len(own) > 1 else 0.0
            upright = model.basis.rotate(groups.mean[own], torch.from_numpy(-turn[own]).float())
            centre.append((groups.size[own, None] * upright).sum(0) / groups.size[own].sum())
        return cls(groups.place, of, turn, torch.stack(centre))

    def assigned(self, z: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Classes and turns of particles z [n, d]: those of the nearest small group."""
        _, group = KDTree(self.place).query(z)
        return self.of[group], self.turn_rad[group]


def along_neighbours(shared: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances [A, A] along the graph that joins each of A points to those it shares most particles with.

    ``shared`` [A, A]: how many particles two points share, relative to how many they have. A step is ``sqrt(-log)`` of it, which is proportional to the
    distance where sharing falls off as a Gaussian. Points that nothing joins are farthest apart.
    """
    shared = shared.copy()
    np.fill_diagonal(shared, 0)
    near = np.argsort(-shared, 1, kind="stable")[:, : min(NEIGHBOURS, len(shared) - 1)]
    relative = (shared / max(shared.max(), 1e-12)).clip(LEAST_SHARED, MOST_SHARED)
    length = np.zeros_like(shared)
    np.put_along_axis(length, near, np.sqrt(-np.log(np.take_along_axis(relative, near, 1))), 1)
    along = shortest_path(np.maximum(length, length.T), directed=False)
    along[~np.isfinite(along)] = FARTHER * max(along[np.isfinite(along)].max(), 1.0)
    return along


def joined(apart: NDArray[np.float64], k: int, weight: NDArray[np.float64], seed: int = 0) -> NDArray[np.int64]:
    """Put A points with distances ``apart`` [A, A] and weights [A] into k classes, numbered from 0; [A].

    K-means in the space that classical scaling gives the points. Those with no weight, or hardly any, follow the point nearest to them.
    """
    from sklearn.cluster import KMeans

    if len(apart) <= k:
        return np.arange(len(apart))
    heavy = np.argsort(-weight, kind="stable")
    leading = np.sort(heavy[: max(k, int((weight > LEAST_WEIGHT * weight.max()).sum()))])
    places, _ = classical_scaling(apart[np.ix_(leading, leading)], DIMENSIONS)
    starts: Any = STARTS  # scikit-learn declares a word only
    found: Any = KMeans(k, n_init=starts, random_state=seed).fit(places, sample_weight=weight[leading] + 1e-9)
    return found.labels_.astype(np.int64)[apart[:, leading].argmin(1)]
