"""Level and slope of the background of single images, and the s.d. of its noise, although neighbours stand in it.

The pixels outside the particle's circle are put together in tiles of neighbouring pixels. A neighbour too faint to be seen in one
pixel stands out in the mean of a tile, so a robust fit of a plane to these means leaves its tiles out. The variance of the pixels
is that within the tiles, averaged over those that are not unusual, plus that of the tiles' means about the plane. Nothing is
trimmed where nothing is unusual: on noise alone the result is the plain standard deviation, but for some hundredths of its own
error, whatever the noise's colour.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from emspatialvae.imaging import geometry
from emspatialvae.imaging.arrays import Images

Values = NDArray[np.floating]

LEAST_PIXELS = 50
"""With fewer pixels outside the circle there is nothing to fit."""
TILES_ACROSS, LEAST_TILE, MOST_TILES = 16, 4, 200
"""A tile has as many pixels as a square of a 16th of the box, at least 4, and more where there would be more than 200 tiles."""
TUKEY_SDS = 3.5
"""Tiles farther than this from the plane have no weight in its fit: 84 % efficient on noise, and firm against faint neighbours."""
MIDVARIANCE_SDS = 5.5
"""The same for the variance of the tiles' means."""
USUAL_SDS, UNUSUAL_SDS = 2.5, 4.5
"""Tiles count in full up to the first for the variance within tiles, and not at all beyond the second."""
NOISE_SHARE = 0.7
"""Of the s.d. that tiles' means have in white noise: the scatter about the plane is never taken to be less."""
LEAST_SHARE = 0.1
"""Of the plain s.d. outside the circle, neighbours and all: what is quieter is no noise, but the empty part of a clean image."""
ABSOLUTE_STEPS, CHOICE_STEPS, STEPS, SPREAD_STEPS = 3, 2, 3, 3
MAD_OF_NORMAL = np.float32(1.4826)


def fit_background(images: Images, radius_px: float) -> tuple[Images, Values]:
    """Planes and noise of the background outside a circle.

    Returns
    -------
    The fitted planes [n, box, box], and the s.d. of the pixels outside the circle about them, without neighbours; [n].

    Raises
    ------
    ValueError
        Fewer than `LEAST_PIXELS` pixels lie outside the circle.
    """
    n, box = len(images), images.shape[-1]
    tiles, plane = _tiles(box, float(radius_px))
    if tiles.size < LEAST_PIXELS:
        raise ValueError(f"{tiles.size} pixels lie outside the circle, expected {LEAST_PIXELS} or more")
    size, count = tiles.shape
    outside = np.take(images.reshape(n, -1), tiles.ravel(), axis=1).astype(np.float32, copy=False)
    level = outside.mean(1, keepdims=True)
    outside -= level
    of_pixels = plane[:, tiles.ravel()]
    in_tiles = outside.reshape(n, size, count)
    means = in_tiles.mean(1)
    scatter = np.square(in_tiles).mean(1) - means**2
    expected = np.sqrt(np.sort(scatter, 1)[:, count // 2, None].clip(min=0) / (size - 1))
    slopes, residual, spread = _robust_plane(means, of_pixels.reshape(3, size, count).mean(1), expected)
    outside -= slopes @ of_pixels
    np.square(outside, out=outside)
    square = in_tiles.mean(1)
    within = (square - residual**2).clip(min=0)
    variance = _usual_mean(within, _full_to_none(residual / spread)) + _midvariance(residual, spread)
    variance = np.maximum(variance, LEAST_SHARE**2 * square.mean(1))
    slopes[:, :1] += level
    return (slopes @ plane).reshape(images.shape).astype(np.float32, copy=False), np.sqrt(variance)


@lru_cache(maxsize=16)
def _tiles(box: int, radius_px: float) -> tuple[NDArray[np.intp], Values]:
    """Numbers of the pixels outside a circle, [pixels of a tile, tiles]; and the functions 1, x, y at all pixels, [3, box^2].

    Pixels next to each other on a Z-order curve lie close together, so pieces of the curve are tiles of equal size however
    little room the circle leaves.
    """
    x, y = (axis.ravel() for axis in geometry.pixel_grid(box))
    row, column = np.divmod(np.arange(box**2), box)
    along = np.zeros(box**2, np.int64)
    for bit in range(box.bit_length()):
        along |= (column >> bit & 1) << (2 * bit) | (row >> bit & 1) << (2 * bit + 1)
    outside = np.flatnonzero(x**2 + y**2 > radius_px**2)
    outside = outside[np.argsort(along[outside])]
    size = max(LEAST_TILE, round((box / TILES_ACROSS) ** 2), -(-len(outside) // MOST_TILES))
    count = len(outside) // size
    kept = np.linspace(0, max(len(outside) - 1, 0), count * size).round().astype(int)
    plane = np.stack([np.ones(box**2), x * 2 / box, y * 2 / box]).astype(np.float32)
    return outside[kept].reshape(count, size).T, plane


def _robust_plane(means: Values, basis: Values, expected: Values) -> tuple[Values, Values, Values]:
    """Fit planes to tiles' means [n, tiles] by Tukey's biweight, from the better of two starts.

    One start is level, where values are densest: right beside bright neighbours. The other minimises absolute residuals: right where
    the slope is steep.

    Parameters
    ----------
    basis
        The functions 1, x, y; [3, tiles].
    expected
        S.d. of the means if the noise were white; [n, 1].

    Returns
    -------
    Coefficients [n, 3], residuals [n, tiles], and their s.d. without outliers [n, 1].
    """
    n = len(means)
    products = np.stack([basis[i] * basis[j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))], 1)
    least = np.maximum(NOISE_SHARE * expected, 1e-5 * np.ptp(means, axis=1, keepdims=True) + np.float32(1e-20))
    weights = np.ones_like(means)
    residual = means
    for _ in range(ABSOLUTE_STEPS):
        residual = means - _weighted_plane(means, weights, basis, products) @ basis
        weights = least / np.maximum(np.abs(residual), least)

    def biweight(values: Values, residual: Values, least: Values, steps: int) -> tuple[Values, Values, Values]:
        coefficients = np.empty((len(values), 3), np.float32)
        for _ in range(steps):
            weights = np.square(_closeness(residual, TUKEY_SDS * np.maximum(_quieter_side(residual), least)))
            coefficients = _weighted_plane(values, weights, basis, products)
            residual = values - coefficients @ basis
        return coefficients, residual, np.maximum(_quieter_side(residual), least)

    starts = np.concatenate([means - _densest(means), residual])
    _, both, spread = biweight(np.tile(means, (2, 1)), starts, np.tile(least, (2, 1)), CHOICE_STEPS)
    close = _closeness(both.reshape(2, n, -1), TUKEY_SDS * np.minimum(spread[:n], spread[n:]))
    gain = np.einsum("ant,ant,ant->an", close, close, close)  # Tukey's loss is 1 minus this
    better = (gain[1] > gain[0])[:, None]
    return biweight(means, np.where(better, both[n:], both[:n]), least, STEPS)


def _weighted_plane(values: Values, weights: Values, basis: Values, products: Values) -> Values:
    """Coefficients [n, 3] of weighted least squares: Cramer's rule for all images at once."""
    a, b, c, d, e, f = (weights @ products).T
    right = (weights * values) @ basis.T
    inverse = np.stack(
        [d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b],
    )
    determinant = a * inverse[0] + b * inverse[1] + c * inverse[2]
    full = inverse[[0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(3, 3, -1)
    return np.einsum("ijn,nj->ni", full, right) / np.maximum(determinant, np.float32(1e-9) * a**3)[:, None]


def _closeness(residual: Values, width: Values) -> Values:
    """1 on the plane, falling to 0 at ``width``: a parabola."""
    close = residual / width
    np.square(close, out=close)
    np.subtract(1, close, out=close)
    return np.maximum(close, 0, out=close)


def _full_to_none(deviation: Values) -> Values:
    """Weights of tiles that lie so many s.d. off."""
    return ((UNUSUAL_SDS - np.abs(deviation)) / (UNUSUAL_SDS - USUAL_SDS)).clip(0, 1)


def _densest(values: Values) -> Values:
    """The middle of the shortest interval that holds half of the values [n, tiles]; [n, 1]."""
    ordered = np.sort(values, 1)
    half = values.shape[1] // 2
    first = (ordered[:, half:] - ordered[:, : values.shape[1] - half]).argmin(1)[:, None]
    return (np.take_along_axis(ordered, first, 1) + np.take_along_axis(ordered, first + half, 1)) / 2


def _quieter_side(residual: Values) -> Values:
    """S.d. [n, 1] by the median of the positive or of the negative residuals [n, tiles], whichever is smaller.

    Neighbours are all bright or all dark, so one side is free of them.
    """
    ordered = np.sort(residual, 1)
    count = residual.shape[1]
    below = (ordered < 0).sum(1, keepdims=True)
    low = -np.take_along_axis(ordered, np.maximum(below - 1 - below // 2, 0), 1)
    high = np.take_along_axis(ordered, np.minimum(below + (count - below) // 2, count - 1), 1)
    few = count // 5
    return MAD_OF_NORMAL * np.where(below < few, high, np.where(count - below < few, low, np.minimum(low, high)))


def _usual_mean(variance: Values, usual: Values) -> Values:
    """Mean of the variances within tiles [n, tiles] without those that are unusual; ``usual`` [n, tiles] from 0 to 1; [n]."""
    root = np.sqrt(np.sqrt(variance))  # scatters almost normally
    deviation, weights = root - _densest(root), usual
    for _ in range(SPREAD_STEPS):
        weights = usual * _full_to_none(deviation / np.maximum(_quieter_side(deviation), np.float32(1e-20)))
        total = np.maximum(weights.sum(1, keepdims=True), np.float32(1e-6))
        deviation = root - (weights * root).sum(1, keepdims=True) / total
    return (weights * variance).sum(1) / np.maximum(weights.sum(1), np.float32(1e-6))


def _midvariance(residual: Values, spread: Values) -> Values:
    """Biweight midvariance of the tiles' means about the plane; [n]."""
    close = _closeness(residual, MIDVARIANCE_SDS * spread)
    square = np.square(close)
    slope = 5 * square.sum(1) - 4 * close.sum(1)
    square *= residual
    return residual.shape[1] * np.einsum("nt,nt->n", square, square) / np.maximum(slope, np.float32(1)) ** 2
