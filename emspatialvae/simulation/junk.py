"""Junk that particle pickers bring along: nothing at all, edges of ice or carbon, aggregates."""

import numpy as np

from emspatialvae.imaging.arrays import Floats
from emspatialvae.imaging.geometry import pixel_axis, pixel_grid

CONTRAST = 2.0  # r.m.s. of an edge or an aggregate over that of the particles
ATOMS = 350  # of an aggregate


def junk_images(n: int, box: int, rms: float, rng: np.random.Generator) -> Floats:
    """Noise-free junk [n, box, box]: an empty image, an edge or a broad blob, or an aggregate, with equal chances.

    ``rms`` is that of the particles' clean images; edges and aggregates are brighter by about `CONTRAST`.
    """
    images = np.zeros((n, box, box))
    for image, kind in zip(images, rng.integers(3, size=n), strict=True):
        if kind:
            image += _edge(box, rng) if kind == 1 else _aggregate(box, rng)
            image *= rms * CONTRAST * rng.uniform(0.6, 1.4) / max(float(image.std()), 1e-12)
    return images


def aggregate_images(n: int, side: int, box: int, rms: float, rng: np.random.Generator) -> Floats:
    """Aggregates only, as large as a box, in the middle of images [n, side, side]; ``rms`` as in `junk_images`."""
    images = np.zeros((n, side, side))
    first = side // 2 - box // 2
    for image in images:
        clump = _aggregate(box, rng, side)
        within = clump[first : first + box, first : first + box]
        image += clump * (rms * CONTRAST * rng.uniform(0.6, 1.4) / max(float(within.std()), 1e-12))
    return images


def _edge(box: int, rng: np.random.Generator) -> Floats:
    """A soft step across the image, or a broad blob: the rim of a hole, thick ice."""
    x, y = pixel_grid(box)
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.25) * box
    if rng.random() < 0.5:
        across = np.cos(angle) * x + np.sin(angle) * y - offset
        return 1 / (1 + np.exp(-across / (0.04 * box)))
    far_x, far_y = x - offset * np.cos(angle), y - offset * np.sin(angle)
    return np.exp(-(far_x**2 + far_y**2) / (2 * (rng.uniform(0.2, 0.35) * box) ** 2))


def _aggregate(box: int, rng: np.random.Generator, side: int | None = None) -> Floats:
    """Clumps of blobs all over the box and beyond its rim, drawn on ``side`` pixels [default: the box]."""
    clumps = rng.uniform(-0.5, 0.5, (8, 2)) * box
    x, y = (clumps[rng.integers(8, size=ATOMS)] + 0.1 * box * rng.standard_normal((ATOMS, 2))).T
    axis = pixel_axis(side or box)
    columns, rows = (np.exp(-0.5 * ((axis - c[:, None]) / (0.035 * box)) ** 2) for c in (x, y))
    return rows.T @ columns
