"""Particles put into classes by their latents: k-means or a mixture of Gaussians in z."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from emspatialvae.config import ClassMethod
from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Floats
from emspatialvae.results.latents import Latents

FITTED = 100_000
"""Particles that classes are fitted to; all others are put into them afterwards."""
RESTARTS = {"kmeans": 10, "gmm": 3}
GMM_TOLERANCE = 1e-4
"""Of the log-likelihood per particle; with ten times as much, stretched groups are not told apart."""
BLOCK = 1 << 22
"""Numbers worked on at once."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """Where classes lie in z: Gaussians, each with a share of the particles."""

    share: Floats
    """[k]"""
    mean: Floats
    """[k, d]"""
    covariance: Floats
    """[k, d, d]; of a class, or one for all: [1, d, d]"""

    def posterior(self, z: Floats, z_sd: Floats) -> Floats:
        """Probability of each class for particles known as N(z, z_sd^2): [n, d] and [n or 1, d] to [n, k].

        ``p(c | y) ~ share_c N(z; mean_c, covariance_c + z_sd^2)``: a class is as wide as it looks to a particle whose place is
        uncertain.
        """
        off = z[:, None] - self.mean
        if self._is_round():
            variance = self.covariance[0, 0, 0] + z_sd**2
            log_p = -(off**2 / variance[:, None]).sum(2) / 2
        else:
            covariance = self.covariance + z_sd[:, None, :, None] ** 2 * np.eye(z.shape[1])
            root = np.linalg.cholesky(covariance)
            white = np.linalg.solve(root, off[..., None])[..., 0]
            log_p = -(white**2).sum(2) / 2 - np.log(np.diagonal(root, axis1=2, axis2=3)).sum(2)
        log_p += np.log(self.share)
        log_p -= log_p.max(1, keepdims=True)
        probability = np.exp(log_p)
        return probability / probability.sum(1, keepdims=True)

    def _is_round(self) -> bool:
        """One covariance for all, the same along every axis: then a determinant never has to be known."""
        return len(self.covariance) == 1 and np.array_equal(
            self.covariance[0], self.covariance[0, 0, 0] * np.eye(self.mean.shape[1])
        )


def classified(latents: Latents, k: int, method: ClassMethod = "kmeans", seed: int = 0) -> Latents:
    """The same results with a class and its probability for each particle that was used.

    Classes are numbered from 1 by the number of their particles, the largest first; those that nobody belongs to are left out.
    The same seed gives the same classes.

    Parameters
    ----------
    k
        Number of classes.
    method
        ``kmeans``: compact classes of one size in z; ``gmm``: classes of any size and shape.

    Raises
    ------
    EmsvaeError
        Fewer particles than classes, or less than one class.
    """
    used = np.flatnonzero(latents.used)
    if not 1 <= k <= len(used):
        raise EmsvaeError(f"--k {k}: expected a number of classes from 1 to the {len(used):,} particles that were used")
    mixture = fit(latents.z[used], k, method, seed)
    found, probability = np.zeros(len(used), dtype=np.int64), np.zeros(len(used))
    d = latents.z.shape[1]
    for rows in np.array_split(np.arange(len(used)), -(-len(used) * k * d * (1 if method == "kmeans" else d) // BLOCK)):
        z, z_sd = latents.z[used[rows]], latents.z_sd[used[rows]]
        # Where z lies says which class; how sure that is depends on how well z is known. Were the class itself to depend on it,
        # a wide class would take in every particle whose place is uncertain.
        found[rows] = mixture.posterior(z, np.zeros((1, d))).argmax(1)
        probability[rows] = mixture.posterior(z, z_sd)[np.arange(len(rows)), found[rows]]
    size = np.bincount(found, minlength=k)
    rank = np.empty(k, dtype=np.int64)
    rank[np.argsort(-size, kind="stable")] = np.arange(1, k + 1)
    number, certainty = np.zeros(len(latents), dtype=np.int64), np.zeros(len(latents))
    number[used], certainty[used] = rank[found], probability
    return replace(latents, class_number=number, class_posterior=certainty)


def fit(z: Floats, k: int, method: ClassMethod, seed: int) -> Mixture:
    """Fit k classes to latents z [n, d], n >= k: to all of them or to `FITTED` drawn by chance."""
    # They take a second to import, and only classes need them.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    most = max(FITTED, k)
    if len(z) > most:
        z = z[np.sort(np.random.default_rng(seed).choice(len(z), most, replace=False))]
    restarts = RESTARTS[method]
    with warnings.catch_warnings():
        # Fewer different latents than classes, or a fit that still creeps: both give classes, if fewer or rougher ones.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if method == "gmm":
            mixture: Any = GaussianMixture(
                k, n_init=restarts, random_state=seed, init_params="k-means++", tol=GMM_TOLERANCE, max_iter=300
            ).fit(z)
            return Mixture(mixture.weights_, mixture.means_, mixture.covariances_)
        centres: Any = KMeans(k, n_init=restarts, random_state=seed).fit(z)  # pyright: ignore[reportArgumentType]
    # Within classes, along an axis; a class of equals has no width, and a particle's own s.d. is all that counts then.
    variance = max(float(centres.inertia_) / z.size, 1e-12)
    return Mixture(np.full(k, 1 / k), centres.cluster_centers_, variance * np.eye(z.shape[1])[None])
