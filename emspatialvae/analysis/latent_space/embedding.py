"""Latent space brought down to a plane: principal components, and UMAP where umap-learn is installed."""

import importlib.util
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emspatialvae.analysis.latent_space.manifold import principal_axes
from emspatialvae.errors import EmsvaeError
from emspatialvae.imaging.arrays import Floats

LEAST_FOR_UMAP = 10
"""Particles."""


@dataclass(frozen=True)
class PrincipalComponents:
    """Uncorrelated latent coordinatess, the most varying first.

    Attributes
    ----------
    mean
        Of the latents; shape [d].
    axes
        Directions of length 1 in z, a row each; where z does not vary, of length 0; shape [d, d].
    scores
        ``(z - mean) @ axes.T``; shape [n, d].
    share
        Of the variance of z, per component; shape [d], sum 1 (zeros where z does not vary).
    """

    mean: Floats
    axes: Floats
    scores: Floats
    share: Floats


def principal_components(z: Floats) -> PrincipalComponents:
    """PCA of latents z [n, d], n >= 1."""
    mean, axes = principal_axes(z, tuple(range(1, z.shape[1] + 1)))
    sd = np.linalg.norm(axes, axis=1)
    axes = axes / np.maximum(sd, 1e-12)[:, None]
    total = (sd**2).sum()
    return PrincipalComponents(mean, axes, (z - mean) @ axes.T, sd**2 / total if total > 0 else 0 * sd)


def some_rows(n: int, limit: int, seed: int = 0) -> NDArray[np.int64]:
    """At most ``limit`` of n rows, drawn at random and in ascending order."""
    if n <= limit:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, limit, replace=False))


def check_umap(n: int) -> None:
    """Say before the work, not after, what keeps UMAP from being made of ``n`` particles.

    Raises
    ------
    EmsvaeError
        umap-learn is not installed, or there are too few particles for neighbours.
    """
    if n < LEAST_FOR_UMAP:
        raise EmsvaeError(
            f"--umap of {n} particles: they have too few neighbours, expected {LEAST_FOR_UMAP} or more (--rows)"
        )
    if importlib.util.find_spec("umap") is None:
        raise EmsvaeError(
            '--umap needs the package umap-learn, which is not installed; pip install "emspatialvae[umap]", or leave --umap out'
        )


def umap_plane(z: Floats, seed: int = 0) -> NDArray[np.float32]:
    """UMAP of latents z [n, d] into a plane; shape [n, 2]. Neighbours stay neighbours; distances and densities do not last.

    Raises
    ------
    EmsvaeError
        See `check_umap`.
    """
    check_umap(len(z))
    from umap import UMAP  # pyright: ignore[reportMissingImports]

    # A seed makes it run on one core and come out the same every time.
    made = UMAP(n_neighbors=min(15, len(z) - 1), random_state=seed, n_jobs=1)
    return np.asarray(made.fit_transform(z.astype(np.float32)), dtype=np.float32)
