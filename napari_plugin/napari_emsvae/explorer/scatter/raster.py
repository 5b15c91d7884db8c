"""A scatter of up to a million points as a raster: how many there are per pixel, and what they are like there.

Drawing points one by one takes seconds at a million; counting them takes hundredths. Pure arithmetic on arrays: no Qt, no matplotlib
figure.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray
from scipy import ndimage

from emspatialvae.imaging.arrays import Floats, Mask

STAMPS = ((500, 4), (5_000, 3), (50_000, 2), (200_000, 1))
"""(points, radius in pixels): up to so many points in view are drawn as discs of that size, more of them as single pixels."""
DENSITY_BINS, DENSITY_BLUR = 192, 2.0
FAINTEST = 0.45
"""Opacity of a pixel with one point, where others have many."""


@dataclass(frozen=True)
class Window:
    """The part of the plane in view."""

    left: float
    right: float
    bottom: float
    top: float

    @classmethod
    def around(cls, points: Floats, margin: float = 0.06) -> "Window":
        """All of the points [n, 2] but the outermost 0.05 % at each end, with some room around them."""
        points = points[np.isfinite(points).all(1)]
        if not len(points):
            return cls(-1, 1, -1, 1)
        low, high = np.percentile(points, [0.05, 99.95], axis=0)
        room = margin * np.where(high > low, high - low, 1.0)
        (left, bottom), (right, top) = (low - room).tolist(), (high + room).tolist()
        return cls(left, right, bottom, top)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        return self.right - self.left, self.top - self.bottom

    def zoomed(self, at: tuple[float, float], factor: float) -> "Window":
        """``factor`` times as large (below 1: closer), with the point ``at`` where it was."""
        x, y = at
        return Window(
            x + (self.left - x) * factor,
            x + (self.right - x) * factor,
            y + (self.bottom - y) * factor,
            y + (self.top - y) * factor,
        )

    def moved(self, dx: float, dy: float) -> "Window":
        """Moved over the plane."""
        return Window(self.left + dx, self.right + dx, self.bottom + dy, self.top + dy)


@dataclass(frozen=True, eq=False)
class Raster:
    """What lies in the pixels of a window; row 0 is the bottom."""

    counts: NDArray[np.int64]
    """[height, width]"""
    level: Floats
    """[height, width]; the mean value, or the commonest code, of the points there; NaN in empty pixels."""


def rasterise(
    points: Floats, window: Window, shape: tuple[int, int], values: Floats | None = None, *, codes: bool = False
) -> Raster:
    """Count points [n, 2] in a window of ``shape`` (height, width) pixels.

    Parameters
    ----------
    values
        What to take the mean of, [n]; NaN does not count [default: the count itself].
    codes
        The values are codes of categories: the commonest wins a pixel, there is no mean of them.
    """
    height, width = shape
    span_x, span_y = window.size
    with np.errstate(invalid="ignore"):
        column = np.floor((points[:, 0] - window.left) * (width / span_x))
        row = np.floor((points[:, 1] - window.bottom) * (height / span_y))
        seen = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    if values is not None:
        seen &= np.isfinite(values)
        values = values[seen]
    column, row = column[seen].astype(np.int64), row[seen].astype(np.int64)
    offsets = _stamp(len(row))
    if len(offsets) > 1:
        column = (column[:, None] + offsets[:, 0]).ravel()
        row = (row[:, None] + offsets[:, 1]).ravel()
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        column, row = column[inside], row[inside]
        values = None if values is None else np.repeat(values, len(offsets))[inside]
    pixel = row * width + column
    counts = np.bincount(pixel, minlength=height * width)
    level = np.where(counts > 0, counts, np.nan)
    if values is not None and codes:
        level = np.full(height * width, np.nan)
        _commonest(pixel, values.astype(np.int64), level)
    elif values is not None:
        with np.errstate(invalid="ignore"):
            level = np.bincount(pixel, values, height * width) / np.where(counts > 0, counts, np.nan)
    return Raster(counts.reshape(shape), level.reshape(shape))


def _stamp(n: int) -> NDArray[np.int64]:
    """The pixels (x, y) of the disc that each of n points is drawn as; [k, 2]."""
    radius = next((radius for most, radius in STAMPS if n <= most), 0)
    reach = np.arange(-radius, radius + 1)
    x, y = (a.ravel() for a in np.meshgrid(reach, reach))
    disc = x**2 + y**2 <= radius * (radius + 0.5)
    return np.stack([x[disc], y[disc]], 1)


def _commonest(pixel: NDArray[np.int64], codes: NDArray[np.int64], out: Floats) -> None:
    """Put the commonest code of each pixel into ``out``."""
    if not len(codes):
        return
    many = int(codes.max()) + 1
    pairs, counts = np.unique(pixel * many + codes, return_counts=True)
    order = np.argsort(counts, kind="stable")  # of several entries for a pixel the last one stays: the commonest
    out[pairs[order] // many] = pairs[order] % many


def opacity(counts: NDArray[np.int64]) -> Floats:
    """0 where there is nothing, 1 where there is most, by the logarithm of the count; [height, width]."""
    highest = counts.max(initial=0)
    if highest <= 1:
        return (counts > 0).astype(float)
    shade = np.log(np.maximum(counts, 1)) / np.log(highest)
    return np.where(counts > 0, FAINTEST + (1 - FAINTEST) * shade, 0.0)


def density(points: Floats) -> Floats:
    """How crowded the neighbourhood of each point [n, 2] is: log10 of points per cell of a smoothed histogram; [n]."""
    window = Window.around(points, 0.0)
    span = np.array([np.maximum(extent, 1e-12) for extent in window.size])
    with np.errstate(invalid="ignore"):
        place = np.floor((points - [window.left, window.bottom]) / span * DENSITY_BINS)
    known = np.asarray(np.isfinite(place).all(1))
    place = np.clip(np.where(known[:, None], place, 0), 0, DENSITY_BINS - 1).astype(np.int64)
    cell = place[:, 1] * DENSITY_BINS + place[:, 0]
    counts = np.bincount(cell[known], minlength=DENSITY_BINS**2).reshape(DENSITY_BINS, -1).astype(float)
    smooth = ndimage.gaussian_filter(counts, DENSITY_BLUR).ravel()
    return np.where(known, np.log10(np.maximum(smooth[cell], 1e-3)), np.nan)


def inside_polygon(points: Floats, corners: Floats) -> Mask:
    """Which points [n, 2] lie inside a polygon given by its corners [k, 2], which closes itself; [n].

    Those outside its bounding box are not looked at, which makes a lasso at a million points four times faster.
    """
    if len(corners) < 3:
        return np.zeros(len(points), dtype=np.bool_)
    inside = inside_box(points, corners[0], corners[1:])
    rows = np.flatnonzero(inside)
    inside[rows] = Polygon(np.asarray(corners)).contains_points(points[rows])
    return inside


def inside_box(points: Floats, corner: Floats, others: Floats) -> Mask:
    """Which points [n, 2] lie in the box that holds a corner [2] and others [2] or [k, 2]; [n]."""
    all_corners = np.vstack([corner, others])
    low, high = all_corners.min(0), all_corners.max(0)
    return ((points >= low) & (points <= high)).all(1)
