"""Ring by ring: how far two images agree, and averages over rings."""

import numpy as np
from numpy.typing import NDArray

from emspatialvae.imaging import ctf, geometry
from emspatialvae.imaging.arrays import Images


def fourier_ring_correlation(first: Images, second: Images) -> NDArray[np.float64]:
    """Correlation of two sets of images [n, box, box], ring by ring of the Fourier plane; shape [n, box // 2 + 1].

    Rings as those of `emspatialvae.imaging.ctf.ring_power`: ring r holds the frequency ``r / box`` in cycles per pixel. NaN where an image has
    nothing in a ring. (Saxton and Baumeister, J. Microsc. 127, 127 (1982).)
    """
    box = first.shape[-1]
    ring, weight = (values.ravel() for values in ctf.rings(box))

    def summed(values: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.bincount(ring, weight * values.ravel()).astype(np.float64)[: box // 2 + 1]

    curves = np.empty((len(first), box // 2 + 1))
    for curve, one, other in zip(curves, first, second, strict=True):
        a, b = np.fft.rfft2(one.astype(np.float64)), np.fft.rfft2(other.astype(np.float64))
        with np.errstate(invalid="ignore"):
            curve[:] = summed((a * b.conj()).real) / np.sqrt(summed(np.abs(a) ** 2) * summed(np.abs(b) ** 2))
    return curves


def resolution_A(curves: NDArray[np.floating], threshold: float, field_A: float) -> NDArray[np.float64]:
    """Where ring correlations [n, rings] first fall below a threshold, linearly between rings; in angstrom, shape [n].

    Twice the pixel size where they never do; NaN where they are below from the first ring on, or not known.

    Parameters
    ----------
    field_A
        Side of the box in angstrom: ring r holds the frequency ``r / field_A``.
    """
    found = np.full(len(curves), np.nan)
    last = curves.shape[1] - 1
    for n, curve in enumerate(curves):
        below = np.flatnonzero(~(curve[1:] >= threshold)) + 1
        ring = float(below[0]) if len(below) else float(last)
        if len(below) and ring > 1:
            before, after = curve[below[0] - 1], curve[below[0]]
            ring -= (threshold - after) / (before - after) if np.isfinite(after) else 1
        if ring > 1 or not len(below):
            found[n] = field_A / ring
    return found


def radial_average(images: Images) -> Images:
    """Mean over rings one pixel wide about the centre; shape [n, box // 2 + 1]."""
    x, y = geometry.pixel_grid(images.shape[-1])
    ring = np.rint(np.hypot(x, y)).astype(int)
    kept = ring <= images.shape[-1] // 2
    count = np.bincount(ring[kept])
    return np.stack([np.bincount(ring[kept], image[kept]) / count for image in images]).astype(np.float32)
