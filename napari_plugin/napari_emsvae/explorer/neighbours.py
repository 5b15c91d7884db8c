"""Which particles of a run are alike, by their latents."""

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import KDTree

from emspatialvae.imaging.arrays import Floats, Rows

if TYPE_CHECKING:
    from emspatialvae.results.latents import Latents


class Neighbours:
    """The particles that a run could use, in latent space."""

    def __init__(self, latents: "Latents") -> None:
        self._latents = latents
        self.used: Rows = np.flatnonzero(latents.used)

    @cached_property
    def z(self) -> Floats:
        """Their latents; [used, d]."""
        whole = self._latents.z
        return whole if len(self.used) == len(whole) else whole[self.used]

    @cached_property
    def spread(self) -> Floats:
        """S.d. of every latent coordinate over the used particles, never 0; [d]."""
        return np.maximum(self.z.std(0), 1e-6)

    @cached_property
    def tree(self) -> KDTree:
        """The used particles, each coordinate in units of its spread."""
        return KDTree(self.z / self.spread)

    def nearest(self, z: Floats, count: int) -> Rows:
        """The used particles nearest to latents z [d], the nearest first; [count] or as many as there are."""
        count = min(count, len(self.used))
        _, found = self.tree.query(np.asarray(z) / self.spread, k=count)
        return self.used[np.atleast_1d(found)]

    @cached_property
    def typical_sd(self) -> Floats:
        """Typical s.d. with which z of a particle is known, per coordinate; [d]."""
        from emspatialvae.analysis.latent_space.paths import typical_sd

        return typical_sd(self._latents.z_sd[self.used])

    def count(self, z: Floats) -> int:
        """How many particles have latents like z [d]: within two standard deviations of what is known of them, as along a path."""
        from emspatialvae.analysis.latent_space.paths import REACH

        unit = self.typical_sd
        told = max(float((1 - np.minimum(unit, 1) ** 2).sum()), 1.0)
        distance = (((self.z - z) / unit) ** 2).sum(1)
        return int((distance <= REACH**2 * told).sum())
